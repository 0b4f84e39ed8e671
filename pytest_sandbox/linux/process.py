"""Processes: descriptors of them, their families, what /proc says of one, and ending with their parent."""

from __future__ import annotations

import fcntl
import math
import os
import resource
import select
import signal
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.linux import machine_code
from pytest_sandbox.linux import syscall as sc

__all__ = [
    "FOLDER",
    "add_hidden_from_oom",
    "add_raised_ulimits",
    "add_ulimits",
    "await_end",
    "close_others",
    "command_line",
    "descendants",
    "die_with_parent",
    "ended",
    "everyone",
    "init_fd",
    "is_near",
    "is_readable",
    "kill",
    "milliseconds",
    "number_inside",
    "path_of",
    "reap",
    "ulimit",
    "working_folder",
]

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_sandbox.linux.program import Program

#: Where the kernel shows processes, in every root.
FOLDER = "/proc"
_RLIMIT_LOCKS = 10  # which Python's resource module lacks
_MFD_EXEC = 0x10
_LONGEST_POLL = (1 << 31) - 1  # poll(2) takes an int


def kill(pidfd: int, number: int) -> None:
    """Send a signal to the process of ``pidfd``; nothing happens where it has ended."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def ended(pidfd: int, timeout: float | None = None) -> bool:
    """Wait up to ``timeout`` seconds (None: for ever) for the process of ``pidfd`` to end, and tell whether it has."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0 if timeout == 0 else milliseconds(timeout)))


def await_end(pid: int, seconds: float = 1.0) -> None:
    """Wait until a process that was killed has ended; whether somebody has reaped it does not matter."""
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        ended(pidfd, seconds)
        os.close(pidfd)


def reap(pid: int) -> int | None:
    """Wait for the child ``pid`` and return its exit status as waitpid(2) gives it; None where it cannot be had.

    Where SIGCHLD is ignored the kernel reaps children, and a handler of the caller's may reap all of them: then waitpid(2) fails with ECHILD
    when the child has ended.
    """
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:
        return None


def milliseconds(seconds: float | None) -> int | None:
    """Return a timeout as poll(2) takes it, rounded up, None for no timeout: what is longer than its 24 days becomes 24 days."""
    if seconds is None:
        return None
    return math.ceil(min(max(seconds, 0) * 1000, _LONGEST_POLL))


def is_readable(fd: int, timeout: float = 0) -> bool:
    """Wait up to ``timeout`` seconds until reading would not wait, and tell whether that is so."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(milliseconds(timeout) if timeout else 0))


def command_line(pid: int, folder: int) -> str:
    """Return a process's command line, or its name in brackets; empty where it has ended. ``folder`` is the /proc that has its number."""
    try:
        words = _read(f"{pid}/cmdline", folder).rstrip(b"\0").split(b"\0")
        if words != [b""]:
            return b" ".join(words).decode(errors="backslashreplace")
        return f"[{_read(f'{pid}/comm', folder).decode(errors='backslashreplace').strip()}]"
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _read(name: str, folder: int | None = None) -> bytes:
    """Read a file of this process's own /proc, or of another one."""
    fd = os.open(name if folder is not None else f"/proc/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    with open(fd, "rb") as file:
        return file.read()


def everyone(folder: int) -> list[int]:
    """Return every process that a /proc shows."""
    return [int(name) for name in os.listdir(folder) if name.isdigit()]


def descendants(pid: int) -> list[int]:
    """Return ``pid`` and all below it, as the calling process's /proc sees them."""
    found = [pid]
    for one in found:
        with suppress(FileNotFoundError, ProcessLookupError):
            found.extend(map(int, _read(f"{one}/task/{one}/children").split()))
    return found


def number_inside(pid: int) -> int:
    """Return the number that a process has in its own PID namespace; 0 where it has ended."""
    try:
        status = _read(f"{pid}/status")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[-1]) for line in status.splitlines() if line.startswith(b"NSpid:")), 0)


def die_with_parent() -> None:
    """Have the kernel kill the calling process when the thread that forked it ends (PR_SET_PDEATHSIG(2const))."""
    sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)


def close_others(kept: set[int]) -> None:
    """Close every descriptor past stderr that is not in ``kept``."""
    previous = 2
    for fd in sorted(kept):
        os.closerange(previous + 1, fd)
        previous = max(previous, fd)
    os.closerange(previous + 1, 1 << 20)


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


def add_raised_ulimits(program: Program, ulimits: Iterable[tuple[str, int, int]]) -> None:
    """Let the hard limits of the process reach what its payloads ask for; the step that fails says which may not be had."""
    for name, _soft, hard in ulimits:
        soft_now, hard_now = _limits(name)
        if hard_now != resource.RLIM_INFINITY and (hard == resource.RLIM_INFINITY or hard > hard_now):
            step = f"raise ulimits: {name}={hard} is over the hard limit of {hard_now}, which may not be raised"
            program.add(step, "prlimit64", 0, ulimit(name), struct.pack("qq", soft_now, hard), None)


def _limits(name: str) -> tuple[int, int]:
    return resource.getrlimit(ulimit(name))


def add_ulimits(program: Program, step: str, ulimits: Iterable[tuple[str, int, int]]) -> None:
    """Set the resource limits ``(name, soft, hard)`` of the process (prlimit(2))."""
    for name, soft, hard in ulimits:
        program.add(step, "prlimit64", 0, ulimit(name), struct.pack("qq", soft, hard), None)


def add_hidden_from_oom(program: Program, step: str) -> None:
    """Keep the kernel's memory killer from choosing this process where another will do (proc_pid_oom_score_adj(5)); not for a user to say."""
    program.write(step, b"/proc/self/oom_score_adj", b"-1000", go_on=True)


def ulimit(name: str) -> int:
    """Return the kernel's number of a resource limit by docker's name."""
    number: int = getattr(resource, f"RLIMIT_{name.upper()}", _RLIMIT_LOCKS)
    return number


def init_fd() -> int:
    """Return a descriptor of the program that is PID 1 of every container: a sealed file in memory, so that nobody can write to what runs.

    Through /proc/1/exe a writable program of the host would be a door out (CVE-2019-5736).
    """
    code = machine_code.INIT[os.uname().machine]
    try:
        low = os.memfd_create("pytest-sandbox-init", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | _MFD_EXEC)
    except OSError:  # before Linux 6.3 there is no such flag, and every memfd is executable
        low = os.memfd_create("pytest-sandbox-init", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(low, _elf(code))
    fcntl.fcntl(low, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    fd = os.open(f"/proc/self/fd/{low}", os.O_RDONLY | os.O_CLOEXEC)  # what is open for writing is not executed (ETXTBSY)
    os.close(low)
    return fd


def _elf(code: bytes) -> bytes:
    """Return the smallest static program: header, one segment, code (elf(5))."""
    machine = {"x86_64": 62, "aarch64": 183}[os.uname().machine]
    start, address = 64 + 56, 0x400000
    identity = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = identity + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, address + start, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = start + len(code)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, address, address, size, size, 0x1000)
    return header + segment + code


def path_of(fd: int) -> str:
    """Return a path by which this process reaches what a descriptor of its own refers to."""
    return f"/proc/self/fd/{fd}"
