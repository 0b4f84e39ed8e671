"""What happened inside, as frozen values: how a process ended, what the container used, what it
wrote.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

__all__ = ["Change", "Exited", "OOMKilled", "Outcome", "Signaled", "Stats", "TimedOut"]


@dataclass(frozen=True, slots=True)
class Exited:
    """The process ended by itself with ``status`` (0 - 255)."""

    status: int


@dataclass(frozen=True, slots=True)
class Signaled:
    """A signal, ``signal`` by its number, ended the process; the kernel's memory killer did not
    send it.
    """

    signal: int


@dataclass(frozen=True, slots=True)
class OOMKilled:
    """The kernel killed the process because its container was over its memory.

    ``limit``, ``peak`` and ``files`` (pages of files, the writable layer among them) are in bytes;
    ``victim`` is the name of the killed process where the kernel's log or the survivors tell it.
    """

    limit: int | None
    peak: int
    files: int = 0
    victim: str = ""


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The process was killed because it ran longer than ``limit`` seconds; ``processes`` are the
    command lines that ran then.
    """

    limit: float
    processes: tuple[str, ...] = field(default=())


Outcome: TypeAlias = Exited | Signaled | OOMKilled | TimedOut


@dataclass(frozen=True, slots=True)
class Stats:
    """What a container uses: bytes, seconds and counts since it was made.

    A figure that this host's cgroups do not give is None, never a guess. ``*_pressure_seconds`` is
    for how long some process inside stood still for want of CPU time, memory or I/O (the kernel's
    PSI, "some"): of cgroup v2, where the kernel counts it. It takes three more files to read, so
    ``Container.stats()`` alone has it: it is None in the figures that a hook or a report is given
    of every test.
    """

    memory_current: int | None
    """Bytes charged now, page cache and the writable layer in memory included."""
    memory_peak: int | None
    """The most bytes charged so far."""
    memory_limit: int | None
    """Bytes: the setting ``memory``."""
    cpu_seconds: float | None
    """CPU time of all processes, user and system."""
    cpu_throttled_seconds: float | None
    """For how long the setting ``cpus`` has held processes back."""
    pids_current: int | None
    """Processes and threads now."""
    pids_peak: int | None
    """The most processes and threads so far."""
    oom_kills: int | None
    """Processes that the kernel has killed for memory."""
    io_read_bytes: int | None
    """Bytes read from block devices."""
    io_write_bytes: int | None
    """Bytes written to block devices."""
    cpu_pressure_seconds: float | None = None
    """For how long some process stood still for want of CPU time."""
    memory_pressure_seconds: float | None = None
    """For how long some process stood still for want of memory."""
    io_pressure_seconds: float | None = None
    """For how long some process stood still for want of I/O."""


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """One path that differs from what the container started on; ``path`` is absolute, as seen
    inside.

    ``kind`` is "added", "modified" or "deleted".
    """

    path: str
    kind: Literal["added", "modified", "deleted"]

    def __str__(self) -> str:
        """Print as ``docker diff`` does: ``A /path``, ``C /path``, ``D /path``."""
        return f"{ {'added': 'A', 'modified': 'C', 'deleted': 'D'}[self.kind] } {self.path}"
