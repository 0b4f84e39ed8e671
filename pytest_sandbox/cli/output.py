"""What a person sees: tables with rich where it is installed and the output is a terminal, else
plain text as docker prints it.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from pytest_sandbox.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

__all__ = ["console", "duration", "plain_table", "print_json", "print_table", "size"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def console() -> Console | None:
    """Return rich's console of stdout; None where it is no terminal, or rich (the extra ``cli``) is
    not installed.
    """
    if sys.stdout is None or not sys.stdout.isatty():  # None: the caller closed it (``>&-``)
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(highlight=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; a cell's text is never read as markup."""
    cells = [[str(cell) for cell in row] for row in rows]
    screen = console()
    if screen is None:
        print(plain_table(columns, cells), end="")
        return
    screen.print(rich_table(columns, cells))


def rich_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Any:
    """Return a table of rich's, for a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        # an id is copied, and found by double-click
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return docker's form: columns three spaces apart, no trailing blanks."""
    lines = [list(columns), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[number]) for line in lines) for number in range(len(columns))]
    return "".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )


def print_json(value: object) -> None:
    """Print a value as JSON, as people and ``jq`` read it."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    print(text if text.isprintable() else "".join(map(_json_character, text)))


def _json_character(character: str) -> str:
    """Escape what a terminal could obey; outside of JSON's strings there are printable characters
    and newlines only.
    """
    if character == "\n" or character.isprintable():
        return character
    return json.dumps(character)[1:-1] if not character.isascii() else f"\\u{ord(character):04x}"


def size(count: float | None) -> str:
    """Return bytes as docker prints memory: ``"64MiB"``, ``"1.5GiB"``; ``"-"`` for None."""
    if count is None:
        return "-"
    for unit in _UNITS:
        if count < 1024 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{count:.4g}{unit}"


def duration(seconds: float) -> str:
    """Return a time span in its largest unit: ``"12 seconds"``, ``"3 hours"``."""
    for length, unit in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= length or length == 1:
            count = int(seconds // length)
            return f"{count} {unit}{'' if count == 1 else 's'}"
    raise AssertionError(seconds)
