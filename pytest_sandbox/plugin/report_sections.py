"""The sections "container" and "changes" of a failed report: what a container used, and which files
it changed.

results.py adds them for a test inside, fixtures.py for one that uses the fixture ``container``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.printable import printable
from pytest_sandbox.units import count, mib, seconds

if TYPE_CHECKING:
    from pytest_sandbox.container.container import Container
    from pytest_sandbox.outcome import Stats

__all__ = ["sections"]

_MAX_SHOWN = 20
#: Limits of the search for changes: a test may have made millions.
_MAX_CHANGES = 10_000
_MAX_SECONDS = 1.0
_MAX_LINE = 1024
_SIZES = ("memory", "memory_swap", "memory_high", "disk", "shm_size")


def sections(
    container: Container, stats: Stats, kept: str | None = None, since: int = 0
) -> list[tuple[str, str]]:
    """Return titles and texts; ``kept`` is the ID of the layer that ``--sandbox-keep`` saved,
    ``since`` the time in nanoseconds since the epoch from which on changes are listed.
    """
    found = [("container", _usage(container, stats, kept))]
    changes = _changes(container, since)
    return [*found, ("changes", changes)] if changes else found


def _usage(container: Container, stats: Stats, kept: str | None) -> str:
    settings = ", ".join(
        f"{key}={mib(value) if key in _SIZES and isinstance(value, int) else value}"
        for key, value in container.settings.raw().items()
    )
    lines = [
        f"{container.id}: {settings or 'defaults'}",
        f"memory peak {mib(stats.memory_peak)}, CPU {seconds(stats.cpu_seconds)}",
        f"processes at most {count(stats.pids_peak)}, killed for memory {count(stats.oom_kills)}",
    ]
    if stats.cpu_throttled_seconds:
        lines.append(f"throttled by cpus= for {seconds(stats.cpu_throttled_seconds)}")
    if kept is not None:
        lines.append(f"kept: pytest-sandbox shell {kept}")
    return "\n".join(lines)


def _changes(container: Container, since: int) -> str:
    from pytest_sandbox.container.diff import changes_of

    try:
        changes = changes_of(container.handle, most=_MAX_CHANGES, seconds=_MAX_SECONDS, since=since)
    except (SandboxError, OSError) as error:
        return f"unknown: {error}"
    lines = [_truncated(printable(change)) for change in changes[:_MAX_SHOWN]]
    left_out = changes.counted - len(lines)
    if left_out > 0:
        lines.append(f"... and {'' if changes.complete else 'at least '}{left_out} more")
    return "\n".join(lines)


def _truncated(line: str) -> str:
    return line if len(line) <= _MAX_LINE else f"{line[:_MAX_LINE]}... ({len(line)} characters)"
