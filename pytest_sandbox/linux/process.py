"""Processes: descriptors of them, their families, what /proc says of one, and ending with their parent."""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.linux import syscall as sc

__all__ = [
    "close_others",
    "command_line",
    "descendants",
    "die_with_parent",
    "ended",
    "everyone",
    "hide",
    "is_near",
    "kill",
    "null_stdio",
    "pid_of",
    "prefer_to_kill",
    "raise_ulimits",
    "set_ulimits",
    "working_folder",
]

if TYPE_CHECKING:
    from collections.abc import Iterable

_RLIMIT_LOCKS = 10  # which Python's resource module lacks
_PREFER_TO_KILL = b"1000"  # OOM_SCORE_ADJ_MAX


def die_with_parent() -> None:
    """Have the kernel kill the calling process when the thread that forked it ends (PR_SET_PDEATHSIG(2const))."""
    sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)


def hide() -> None:
    """Close /proc/PID of the calling process to all without power over its user namespace: no ptrace, no door through exe, mem or fd."""
    sc.prctl(sc.PR_SET_DUMPABLE, 0)


def kill(pidfd: int, number: int) -> None:
    """Send a signal to the process of ``pidfd``; nothing happens where it has ended."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def ended(pidfd: int, timeout: float | None = None) -> bool:
    """Wait up to ``timeout`` seconds (None: for ever) for the process of ``pidfd`` to end, and tell whether it has."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else max(0, timeout) * 1000))


def pid_of(pidfd: int) -> int:
    """Return the number of a process as this process's /proc sees it; -1 where it has ended."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pid:"))


def command_line(pid: int) -> str:
    """Return a process's command line, or its name in brackets; empty where it has ended."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().rstrip(b"\0").split(b"\0")
        if words != [b""]:
            return b" ".join(words).decode(errors="backslashreplace")
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="backslashreplace") as file:
            return f"[{file.read().strip()}]"
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_near(pid: int) -> bool:
    """Whether a process is in the PID namespace that this one's /proc shows, and not in one below it: then it has one number only."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        return any(line.startswith("NSpid:") and len(line.split()) == 2 for line in file)


def working_folder(pid: int) -> str:
    """Return a process's working folder; "/" where this one may not look."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return "/"


def everyone() -> list[int]:
    """Return every process that the calling one's /proc shows."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def descendants(pid: int) -> list[int]:
    """Return ``pid`` and all below it, as the calling process's /proc sees them."""
    found = [pid]
    for one in found:
        with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{one}/task/{one}/children", encoding="ascii") as file:
            found.extend(map(int, file.read().split()))
    return found


def prefer_to_kill(pid: int) -> None:
    """Have the kernel's memory killer choose ``pid`` and what it starts before the init beside it (proc_pid_oom_score_adj(5))."""
    with suppress(OSError):  # it may have ended already
        fd = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, _PREFER_TO_KILL)
        finally:
            os.close(fd)


def null_stdio() -> None:
    """Put /dev/null in the place of stdin, stdout and stderr."""
    fd = os.open("/dev/null", os.O_RDWR)
    for standard in range(3):
        os.dup2(fd, standard)
    if fd > 2:
        os.close(fd)


def close_others(kept: set[int]) -> None:
    """Close every descriptor past stderr that is not in ``kept``."""
    previous = 2
    for fd in sorted(kept):
        os.closerange(previous + 1, fd)
        previous = max(previous, fd)
    os.closerange(previous + 1, 1 << 20)


def raise_ulimits(ulimits: Iterable[tuple[str, int, int]]) -> None:
    """Let the calling process's hard limits reach what ``(name, soft, hard)`` ask for its children; PermissionError where they may not."""
    for name, _soft, hard in ulimits:
        soft_now, hard_now = resource.getrlimit(_ulimit(name))
        if hard_now != resource.RLIM_INFINITY and (hard == resource.RLIM_INFINITY or hard > hard_now):
            try:
                resource.setrlimit(_ulimit(name), (soft_now, hard))
            except (ValueError, OSError) as error:
                raise PermissionError(
                    errno.EPERM, f"{name}={hard} is over the hard limit of {hard_now}, which may not be raised"
                ) from error


def set_ulimits(ulimits: Iterable[tuple[str, int, int]]) -> None:
    """Set the calling process's resource limits (getrlimit(2)), soft and hard."""
    for name, soft, hard in ulimits:
        resource.setrlimit(_ulimit(name), (soft, hard))


def _ulimit(name: str) -> int:
    number: int = getattr(resource, f"RLIMIT_{name.upper()}", _RLIMIT_LOCKS)
    return number


def path_of(fd: int) -> str:
    """Return a path by which this process reaches what a descriptor of its own refers to."""
    return f"/proc/self/fd/{fd}"
