"""The sections "container" and "changes" of a failed report: what a container used, and which files
it changed. And those with captured output, if two processes have captured it.

results.py adds the former for a test inside, fixtures.py for one that uses the fixture
``container``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.plugin import compat
from pytest_sandbox.printable import printable
from pytest_sandbox.units import count, mib, seconds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_sandbox.container.container import Container
    from pytest_sandbox.outcome import Stats

__all__ = ["add_captured", "add_outer_output", "note_captured", "sections"]

_KNOWN = pytest.StashKey[int]()

_MAX_SHOWN = 20
#: Limits of the search for changes: a test may have made millions.
_MAX_CHANGES = 10_000
_MAX_SECONDS = 1.0
_MAX_LINE = 1024
#: What pytest captures, in the order in which it adds sections.
_STREAMS = ("stdout", "stderr", "log")
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


def note_captured(item: pytest.Item) -> None:
    """Note how much the parent has captured for an item before the teardown phase."""
    item.stash[_KNOWN] = len(compat.captured_sections(item))


def add_outer_output(item: pytest.Item, report: pytest.TestReport) -> None:
    """Add to the report of a teardown in the test process what the parent has captured in that
    phase: of fixtures of higher scopes.
    """
    found = compat.captured_sections(item)
    add_captured(report.sections, found[item.stash.get(_KNOWN, len(found)) :])
    item.stash[_KNOWN] = len(found)


def add_captured(sections: list[tuple[str, str]], later: Iterable[tuple[str, str]]) -> None:
    """Add what another process has captured later in the same phase, as if it were the same
    process: a stream has one section.
    """
    for title, text in later:
        stream, _, phase = title.removeprefix("Captured ").partition(" ")
        titles = [one for one, _ in sections]
        if stream not in _STREAMS:
            sections.append((title, text))
        elif title in titles:
            index = len(titles) - 1 - titles[::-1].index(title)
            separator = "\n" if stream == "log" else ""
            sections[index] = (title, f"{sections[index][1]}{separator}{text}")
        else:
            after = _STREAMS[_STREAMS.index(stream) + 1 :]
            sections.insert(
                _place(titles, [f"Captured {one} {phase}" for one in after]), (title, text)
            )


def _place(titles: list[str], following: list[str]) -> int:
    """Return the index of a new section: before those that follow, or after all captured ones."""
    found = [index for index, one in enumerate(titles) if one in following]
    captured = [index for index, one in enumerate(titles) if one.startswith("Captured ")]
    return found[0] if found else captured[-1] + 1 if captured else 0
