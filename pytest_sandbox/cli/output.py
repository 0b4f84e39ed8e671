"""Tables and JSON on standard output: with rich on a terminal if it is installed, else as docker
prints them.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from pytest_sandbox.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

__all__ = ["console", "json_text", "plain_table", "print_json", "print_table", "rich_table"]


def console() -> Console | None:
    """Return rich's console of stdout, or None if stdout is not a terminal or rich (the extra
    ``cli``) is not installed.
    """
    if sys.stdout is None or not sys.stdout.isatty():  # None if it is closed (``>&-``)
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(highlight=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table. The text of a cell is not parsed as markup."""
    cells = [[str(cell) for cell in row] for row in rows]
    screen = console()
    if screen is None:
        print(plain_table(columns, cells), end="")
        return
    screen.print(rich_table(columns, cells))


def rich_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Any:
    """Return a table of rich, for a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        # An id is not wrapped, so that a double-click selects it.
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as docker prints it: columns three spaces apart, no trailing spaces."""
    lines = [list(columns), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[number]) for line in lines) for number in range(len(columns))]
    return "".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )


def print_json(value: object) -> None:
    """Print a value as indented JSON."""
    print(json_text(value, indent=2))


def json_text(value: object, *, indent: int | None) -> str:
    """Return a value as JSON that a terminal can show; without ``indent`` in one line."""
    separators = None if indent else (",", ":")
    text = json.dumps(value, indent=indent, separators=separators, ensure_ascii=False)
    return text if text.isprintable() else "".join(map(_json_character, text))


def _json_character(character: str) -> str:
    """Return a character of a JSON text, escaped if it could control a terminal.

    Outside of strings, JSON has only printable characters and newlines.
    """
    if character == "\n" or character.isprintable():
        return character
    return json.dumps(character)[1:-1] if not character.isascii() else f"\\u{ord(character):04x}"
