"""What a container used and changed: the sections of a failed report, and the properties of every
report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.plugin.crash_report import mib
from pytest_sandbox.plugin.display import escaped

if TYPE_CHECKING:
    import pytest

    from pytest_sandbox.container.container import Container
    from pytest_sandbox.outcome import Stats

__all__ = ["PREFIX", "add_properties", "is_ours", "sections"]

PREFIX = "container."
_MOST_CHANGES = 20
#: Changes that are looked for: a test may have made millions, and its report must not wait for all
#: of them.
_MOST_LISTED = 10_000
_MOST_SECONDS = 1.0
_MOST_LENGTH = 1024


def add_properties(
    item: pytest.Item, container: Container, stats: Stats, *, killed: bool, kept: str | None = None
) -> None:
    """Put the figures into the item's user properties, in the place of those of an earlier run."""
    found = {
        "id": container.id,
        "memory_peak": stats.memory_peak,
        "cpu_seconds": stats.cpu_seconds,
        "pids_peak": stats.pids_peak,
        "oom_killed": killed or bool(stats.oom_kills),
    }
    if kept is not None:
        found["kept"] = kept
    others = [one for one in item.user_properties if not is_ours(one)]
    item.user_properties[:] = [*others, *((PREFIX + name, value) for name, value in found.items())]


def is_ours(one: Any) -> bool:
    """Tell whether a user property is one of ours; a test's own may have any name and any
    length.
    """
    return bool(one) and isinstance(one[0], str) and one[0].startswith(PREFIX)


def _on_one_line(path: str) -> str:
    return escaped(path).replace("\n", "\\n")


def sections(container: Container, stats: Stats, kept: str | None = None) -> list[tuple[str, str]]:
    """Return the sections "container" and "changes" of a report."""
    found = [("container", _container(container, stats, kept))]
    changes = _changes(container)
    return [*found, ("changes", changes)] if changes else found


def _container(container: Container, stats: Stats, kept: str | None) -> str:
    raw = container.settings.raw()
    limits = ", ".join(
        f"{key}={mib(value) if key in _SIZES and isinstance(value, int) else value}"
        for key, value in raw.items()
    )
    lines = [
        f"{container.id}: {limits or 'defaults'}",
        f"memory peak {mib(stats.memory_peak)}, CPU {_seconds(stats.cpu_seconds)}",
        f"processes at most {_count(stats.pids_peak)}, killed for memory {_count(stats.oom_kills)}",
    ]
    if stats.cpu_throttled_seconds:
        lines.append(f"held back by cpus= for {_seconds(stats.cpu_throttled_seconds)}")
    if kept is not None:
        lines.append(f"kept: pytest-sandbox shell {kept}")
    return "\n".join(lines)


_SIZES = ("memory", "memory_swap", "memory_high", "disk", "shm_size")


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f} s"


def _count(value: int | None) -> str:
    return "unknown" if value is None else str(value)


def _changes(container: Container) -> str:
    from pytest_sandbox.container.diff import changes_of

    try:
        changes = changes_of(container.handle, most=_MOST_LISTED, seconds=_MOST_SECONDS)
    except (SandboxError, OSError) as error:
        return f"not known: {error}"
    shown = [_shortened(_on_one_line(str(change))) for change in changes[:_MOST_CHANGES]]
    if changes.counted > len(shown):
        shown.append(
            f"... and {'' if changes.complete else 'at least '}{changes.counted - len(shown)} more"
        )
    return "\n".join(shown)


def _shortened(line: str) -> str:
    return (
        line if len(line) <= _MOST_LENGTH else f"{line[:_MOST_LENGTH]}... ({len(line)} characters)"
    )
