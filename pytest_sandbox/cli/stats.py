"""The table of ``stats``: the resource usage of running containers, once or every second."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from pytest_sandbox.cli import output
from pytest_sandbox.cli.format import Listing
from pytest_sandbox.container.detached import list_running
from pytest_sandbox.container.remote import find
from pytest_sandbox.units import size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.cli.format import Format
    from pytest_sandbox.container.remote import RemoteContainer

__all__ = ["LISTING", "run"]

_INTERVAL = 1.0  # seconds between two samples, from which CPU % is computed
#: The fields of a row, for ``--format``, in the order of the cells.
LISTING = Listing(
    {
        "ID": "CONTAINER ID",
        "Name": "NAME",
        "CPUPerc": "CPU %",
        "MemUsage": "MEM USAGE / LIMIT",
        "MemPerc": "MEM %",
        "MemPeak": "MEM PEAK",
        "BlockIO": "BLOCK I/O",
        "PIDs": "PIDS",
    },
    ("ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "MemPeak", "BlockIO", "PIDs"),
)
_COLUMNS = tuple(LISTING.headers.values())


class _Sample:
    """The figures of all containers at one time."""

    def __init__(self, names: Sequence[str]) -> None:
        everything = list_running(stats=True)
        self.ones = [find(name, everything) for name in names] if names else everything
        self.time = time.monotonic()

    def cpu_percent(self, one: RemoteContainer, before: _Sample) -> float | None:
        """Return the CPU time per wall time since the sample ``before``, in percent.

        None if the host does not count it, or the container is not in that sample.
        """
        earlier = next((other.stats for other in before.ones if other.id == one.id), None)
        if (
            not one.stats
            or not earlier
            or one.stats.cpu_seconds is None
            or earlier.cpu_seconds is None
        ):
            return None
        return (
            100 * (one.stats.cpu_seconds - earlier.cpu_seconds) / max(self.time - before.time, 1e-9)
        )


def run(names: Sequence[str], *, form: Format, once: bool) -> int:
    """Print the figures of the named containers, or of all, once or until Ctrl-C."""
    before = _Sample(names)
    if once and form.word != "json" and not before.ones:
        form.print([], LISTING)
        return 0
    time.sleep(_INTERVAL)
    now = _Sample(names)
    if once:
        _print(now, before, form)
        return 0
    with suppress(KeyboardInterrupt):  # ends the command
        _show(names, now, before)
    return 0


def _print(now: _Sample, before: _Sample, form: Format) -> None:
    if form.word == "json":
        output.print_json([_entry(one, now.cpu_percent(one, before)) for one in now.ones])
    else:
        rows = [dict(zip(LISTING.headers, row, strict=True)) for row in _rows(now, before)]
        form.print(rows, LISTING)


def _entry(one: RemoteContainer, cpu: float | None) -> dict[str, object]:
    figures = asdict(one.stats) if one.stats else {}
    return {
        "id": one.id,
        "name": one.label,
        "cpu_percent": None if cpu is None else round(cpu, 2),
        **figures,
    }


def _rows(now: _Sample, before: _Sample) -> list[tuple[str, ...]]:
    return [_row(one, now.cpu_percent(one, before)) for one in now.ones]


def _row(one: RemoteContainer, cpu: float | None) -> tuple[str, ...]:
    used = one.stats
    if used is None:
        return (one.id, one.label, *("-",) * (len(_COLUMNS) - 2))
    share = (
        100 * used.memory_current / used.memory_limit
        if used.memory_current is not None and used.memory_limit
        else None
    )
    return (
        one.id,
        one.label,
        _percent(cpu),
        f"{size(used.memory_current)} / {size(used.memory_limit)}",
        _percent(share),
        size(used.memory_peak),
        f"{size(used.io_read_bytes)} / {size(used.io_write_bytes)}",
        "-" if used.pids_current is None else str(used.pids_current),
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}%"


def _show(names: Sequence[str], now: _Sample, before: _Sample) -> None:
    """Print a table every second: in place with rich, else one below the other."""
    terminal = output.console()
    if terminal is None:
        while True:
            output.print_table(_COLUMNS, _rows(now, before))
            sys.stdout.flush()
            before, now = now, _next(names)
    from rich.live import Live

    with Live(
        output.rich_table(_COLUMNS, _rows(now, before)),
        console=terminal,
        auto_refresh=False,
        screen=False,
    ) as live:
        while True:
            before, now = now, _next(names)
            live.update(output.rich_table(_COLUMNS, _rows(now, before)), refresh=True)


def _next(names: Sequence[str]) -> _Sample:
    time.sleep(_INTERVAL)
    return _Sample(names)
