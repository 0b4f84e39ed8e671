"""How a process inside ended, what the container used, and which files it changed, as frozen
values.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

__all__ = ["Change", "Exited", "OOMKilled", "Outcome", "Signaled", "Stats", "TimedOut"]


@dataclass(frozen=True, slots=True)
class Exited:
    """The process exited with ``status`` (0 - 255)."""

    status: int


@dataclass(frozen=True, slots=True)
class Signaled:
    """The signal with the number ``signal`` killed the process. It was not sent by the kernel's
    OOM killer.
    """

    signal: int


@dataclass(frozen=True, slots=True)
class OOMKilled:
    """The kernel killed the process because its container exceeded its memory limit.

    ``limit``, ``peak`` and ``files`` (page cache, with a writable layer in memory) are in bytes.
    ``victim`` is the name of the killed process, or empty if it is not known from the kernel's log
    or from the remaining processes.
    """

    limit: int | None
    peak: int
    files: int = 0
    victim: str = ""


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The process was killed because it ran longer than ``limit`` seconds.

    ``processes`` are the command lines of all processes inside at that time.
    """

    limit: float
    processes: tuple[str, ...] = field(default=())


Outcome: TypeAlias = Exited | Signaled | OOMKilled | TimedOut


@dataclass(frozen=True, slots=True)
class Stats:
    """What a container has used since it was created, in bytes, seconds and counts.

    A figure that this host's cgroups do not have is None. ``*_pressure_seconds`` is the time in
    which at least one process inside was delayed because CPU time, memory or I/O was not available
    ("some" of the kernel's pressure stall information, cgroup v2 only). To read it takes three more
    files, so only ``Container.stats()`` does: hooks and reports of tests have None.
    """

    memory_current: int | None
    """Bytes charged now, including page cache and a writable layer in memory."""
    memory_peak: int | None
    """Highest number of bytes charged so far."""
    memory_limit: int | None
    """The setting ``memory``, in bytes."""
    cpu_seconds: float | None
    """CPU time of all processes, user and system."""
    cpu_throttled_seconds: float | None
    """Time in which processes were throttled because of the setting ``cpus``."""
    pids_current: int | None
    """Number of processes and threads now."""
    pids_peak: int | None
    """Highest number of processes and threads so far."""
    oom_kills: int | None
    """Number of processes that the kernel has killed for memory."""
    io_read_bytes: int | None
    """Bytes read from block devices."""
    io_write_bytes: int | None
    """Bytes written to block devices."""
    cpu_pressure_seconds: float | None = None
    """Time in which at least one process waited for CPU time."""
    memory_pressure_seconds: float | None = None
    """Time in which at least one process waited for memory."""
    io_pressure_seconds: float | None = None
    """Time in which at least one process waited for I/O."""

    def since(self, earlier: Stats) -> Stats:
        """Return these figures with counters as differences to earlier ones; the memory, the number
        of processes and their peaks stay what they are.
        """
        counters = (
            "cpu_seconds",
            "cpu_throttled_seconds",
            "oom_kills",
            "io_read_bytes",
            "io_write_bytes",
        )
        pairs = {name: (getattr(self, name), getattr(earlier, name)) for name in counters}
        return replace(
            self,
            **{
                name: None if now is None or before is None else now - before
                for name, (now, before) in pairs.items()
            },
        )


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """A file that differs from the container's root file system at its start.

    ``path`` is absolute, as seen inside. ``kind`` is "added", "modified" or "deleted".
    """

    path: str
    kind: Literal["added", "modified", "deleted"]

    def __str__(self) -> str:
        """Return the line of ``docker diff``: ``A /path``, ``C /path`` or ``D /path``."""
        return f"{ {'added': 'A', 'modified': 'C', 'deleted': 'D'}[self.kind] } {self.path}"
