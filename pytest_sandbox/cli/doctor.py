"""``doctor``: what this host can do, and what helps where it cannot."""

from __future__ import annotations

import sys
from itertools import groupby
from typing import TYPE_CHECKING

from pytest_sandbox.cli import output
from pytest_sandbox.cli.verb import Verb

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from rich.console import Console

    from pytest_sandbox.host import Capability

__all__ = ["VERBS"]

_DETAILS = """\
Containers are started as a test session starts them, with each setting, and removed again.
If no container starts, what it is made of is tried by itself, to show who refuses what.

marks: 'yes'; 'no', where only what the row names is lacking; 'NO', what every test session needs.
exit status: 0 if containers can be used here, else 1.
"""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")


def _run(found: argparse.Namespace) -> int:
    from pytest_sandbox import doctor

    rows = doctor.examine()
    if found.json:
        output.print_json([row.to_json() for row in rows])
    else:
        _print(rows)
    return int(any(row.needed and not row.found for row in rows))


def _print(rows: Sequence[Capability]) -> None:
    terminal = output.console()
    width = max(len(row.name) for row in rows)
    for area, inside in groupby(rows, key=lambda row: row.area):
        _line(terminal, area, "bold")
        for row in inside:
            _line(
                terminal,
                f"  {_mark(row):<3}  {row.name:<{width}}  {row.why}",
                "" if row.found else "red" if row.needed else "yellow",
            )
            if not row.found:
                _line(terminal, f"       {'':<{width}}  -> {row.remedy} (for: {row.use})", "")
    _line(terminal, _verdict(rows), "bold")


def _line(terminal: Console | None, text: str, style: str) -> None:
    if terminal is None:
        sys.stdout.write(f"{text}\n")
    else:
        terminal.print(text, style=style or None, markup=False, soft_wrap=True)


def _mark(row: Capability) -> str:
    return "yes" if row.found else "NO" if row.needed else "no"


def _verdict(rows: Sequence[Capability]) -> str:
    lacking = [row.name for row in rows if row.needed and not row.found]
    if lacking:
        return f"Containers cannot be used here: {', '.join(lacking)}."
    limits = [
        row.name.removeprefix("limit: ")
        for row in rows
        if row.name.startswith("limit: ") and not row.found
    ]
    return "Containers can be used here" + (
        f", without limits on {', '.join(limits)}." if limits else ", with every limit."
    )


VERBS = (
    Verb(
        name="doctor",
        usage="[--json]",
        summary="Tell what this host can do, and the remedy for each thing it cannot",
        details=_DETAILS,
        arguments=_arguments,
        run=_run,
    ),
)
