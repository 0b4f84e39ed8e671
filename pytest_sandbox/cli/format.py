"""``--format``: a table, JSON, or docker's templates; and the fields of each list."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_sandbox.cli import output
from pytest_sandbox.cli.go_template import Template, TemplateError
from pytest_sandbox.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Format", "Listing", "add_format"]

#: The words that docker accepts in place of a template.
_WORDS = ("table", "json")


@dataclass(frozen=True)
class Listing:
    """The rows of one verb: the header of each field, and the fields of the table."""

    headers: Mapping[str, str]
    table: Sequence[str]


class Format:
    """The value of ``--format``: ``word`` is "table" or "json" without a template, else empty."""

    def __init__(self, text: str) -> None:
        self.word = text if text in _WORDS else ""
        body = text.removeprefix("table ")
        self._is_table = body != text
        self._text = text
        self._template = None if self.word else Template(body.lstrip() if self._is_table else text)

    def __repr__(self) -> str:
        return self._text

    def render(self, value: Any) -> str:
        """Return the text of a value. Raises :class:`SandboxError`."""
        assert self._template is not None
        try:
            return self._template.render(value)
        except TemplateError as error:
            raise SandboxError(f"--format {self._text!r} is not valid: {error}") from None

    def print(self, rows: Iterable[Mapping[str, Any]], listing: Listing) -> None:
        """Print a row for each value: a table, or the template's text in a line."""
        if self.word:
            cells = [[row[name] for name in listing.table] for row in rows]
            output.print_table([listing.headers[name] for name in listing.table], cells)
            return
        lines = [self.render(row) for row in rows]
        if self._is_table:
            header = self.render({**listing.headers, "Label": str})
            width = header.count("\t") + 1
            split = [(line.split("\t") + [""] * width)[:width] for line in lines]
            output.print_table(header.split("\t"), split)
        else:
            print("".join(f"{line}\n" for line in lines), end="")


def _format(text: str) -> Format:
    try:
        return Format(text)
    except TemplateError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid: {error}") from None


def add_format(
    parser: argparse.ArgumentParser,
    fields: Iterable[str] = (),
    *,
    default: str = "table",
    short: str = "",
) -> None:
    """Add ``--format`` for a list of these fields, or for a value of nested ones; ``short`` is its
    one-letter form.
    """
    named = ", ".join(f".{name}" for name in fields)
    parser.add_argument(
        *filter(None, [short]),
        "--format",
        type=_format,
        default=Format(default),
        metavar="FORMAT",
        help=f"table, json (one list, for programs), or a template of docker's, such as "
        f"'{{{{json .}}}}' or 'table {{{{.ID}}}}', with the fields {named} (default: {default})"
        if named
        else "a template of docker's, such as '{{.State.Running}}' or '{{json .Config}}' "
        f"(default: {default})",
    )
