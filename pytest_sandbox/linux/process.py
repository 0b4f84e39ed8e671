"""Processes: descriptors of them, their families, what /proc says of one, and ending with their
parent.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import resource
import select
import signal
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.linux import syscall as sc

__all__ = [
    "DIRECTORY",
    "add_hidden_from_oom",
    "add_raised_ulimits",
    "add_ulimits",
    "argument_area",
    "await_exit",
    "close_others",
    "command_line",
    "descendants",
    "describe_ulimits_to_raise",
    "die_with_parent",
    "ended",
    "everyone",
    "has_ended",
    "inheritable_descriptors",
    "is_in_namespace_of",
    "is_near",
    "is_proc_of",
    "is_readable",
    "kill",
    "milliseconds",
    "name",
    "number_inside",
    "open_in_proc",
    "path_of",
    "reap",
    "ulimit",
    "working_directory",
]

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_sandbox.linux.syscall_batch import Program

#: Where the kernel shows processes, in every root.
DIRECTORY = "/proc"
# <linux/pidfd.h>
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_SIZE, _PIDFD_INFO_EXIT = 64, 1 << 3
_NS_GET_PARENT = 0xB702  # <linux/nsfs.h>
_LONGEST_POLL = (1 << 31) - 1
_RLIMIT_LOCKS = 10  # which Python's resource module lacks


def kill(pidfd: int, number: int) -> None:
    """Send a signal to the process of ``pidfd``; nothing happens where it has ended."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return
    except OSError as error:  # of one that had ended before it could be opened there is no pidfd
        if error.errno != errno.EBADF or os.fstat(pidfd).st_rdev == 0:
            raise


def await_exit(pid: int, pidfd: int, timeout: float) -> int | None:
    """Wait up to ``timeout`` seconds for a child to end; return its exit status, negative for a
    signal.

    Returns None where it has not ended, and where its status is lost: the caller of this library
    ignores SIGCHLD, or has a handler for it that waits for every child (wait(2)), and the kernel
    is older than Linux 6.15.
    """
    if not ended(pidfd, timeout):
        return None
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return _exit_status(pidfd)
    return os.waitstatus_to_exitcode(status) if found else None


def _exit_status(pidfd: int) -> int | None:
    """Return the exit status of a process that somebody has reaped; None before Linux 6.15
    (PIDFD_GET_INFO).
    """
    info = bytearray(_PIDFD_INFO_SIZE)
    struct.pack_into("=Q", info, 0, _PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:
        return None
    mask, status = struct.unpack_from("=Q", info)[0], struct.unpack_from("=i", info, 60)[0]
    return os.waitstatus_to_exitcode(status) if mask & _PIDFD_INFO_EXIT else None


def name(pid: int) -> bytes:
    """Return the name of a process's program, at most 15 bytes; empty where it has ended."""
    try:
        return _read(f"{pid}/comm").rstrip(b"\n")
    except (FileNotFoundError, ProcessLookupError):
        return b""


def ended(pidfd: int, timeout: float | None = None) -> bool:
    """Wait up to ``timeout`` seconds (None: for ever) for the process of ``pidfd`` to end, and tell
    whether it has.
    """
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0 if timeout == 0 else milliseconds(timeout)))


def reap(pid: int) -> int | None:
    """Wait for the child ``pid`` and return its exit status as waitpid(2) gives it; None where it
    cannot be had.

    Where SIGCHLD is ignored the kernel reaps children, and a handler of the caller's may reap all
    of them: then waitpid(2) fails with ECHILD when the child has ended.
    """
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:
        return None


def milliseconds(seconds: float | None) -> int | None:
    """Return a timeout as poll(2) takes it, rounded up, None for no timeout: what is longer than
    its 24 days becomes 24 days.
    """
    if seconds is None:
        return None
    return math.ceil(min(max(seconds, 0) * 1000, _LONGEST_POLL))


def is_readable(fd: int, timeout: float = 0) -> bool:
    """Wait up to ``timeout`` seconds until reading would not wait, and tell whether that is so."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(milliseconds(timeout) if timeout else 0))


def command_line(pid: int, directory: int) -> str:
    """Return a process's command line, or its name in brackets; empty where it has ended.
    ``directory`` is the /proc that has its number.
    """
    try:
        words = _read(f"{pid}/cmdline", directory).rstrip(b"\0").split(b"\0")
        if words != [b""]:
            return b" ".join(words).decode(errors="backslashreplace")
        return f"[{_read(f'{pid}/comm', directory).decode(errors='backslashreplace').strip()}]"
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _read(name: str, directory: int | None = None) -> bytes:
    """Read a file of this process's own /proc, or of another one."""
    fd = (
        os.open(f"/proc/{name}", os.O_RDONLY | os.O_CLOEXEC)
        if directory is None
        else open_in_proc(name, directory)
    )
    with open(fd, "rb") as file:
        return file.read()


def open_in_proc(name: str, proc: int, flags: int = os.O_RDONLY) -> int:
    """Open what lies below a container's /proc, and nothing that was mounted or linked there.

    A privileged payload can mount over it; the path would then be followed on the host.
    """
    resolve = sc.RESOLVE_BENEATH | sc.RESOLVE_NO_SYMLINKS | sc.RESOLVE_NO_XDEV
    try:
        return sc.openat2(name, flags | os.O_NONBLOCK, resolve, dir_fd=proc)
    except OSError as error:
        if error.errno in {errno.EXDEV, errno.ELOOP}:
            raise FileNotFoundError(errno.ENOENT, "something else is mounted there", name) from None
        raise


def everyone(directory: int) -> list[int]:
    """Return every process that a /proc shows."""
    return [int(name) for name in os.listdir(directory) if name.isdigit()]


def descendants(pid: int) -> list[int]:
    """Return ``pid`` and all below it, as the calling process's /proc sees them."""
    found = [pid]
    for one in found:
        with suppress(FileNotFoundError, ProcessLookupError):
            for thread in os.listdir(f"/proc/{one}/task"):  # each has the children that it forked
                found.extend(map(int, _read(f"{one}/task/{thread}/children").split()))
    return found


def has_ended(pid: str, directory: int) -> bool:
    """Tell whether a process that a /proc shows is dead, though perhaps not yet reaped.

    One whose first thread has ended looks dead while the others go on (proc_pid_stat(5)).
    """
    try:
        fields = _read(f"{pid}/stat", directory).rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return True
    state, threads = fields[0], int(fields[17])  # fields 3 and 20
    return state in {b"Z", b"X"} and threads <= 1


def is_proc_of(directory: int, init: int) -> bool:
    """Tell whether a directory is a /proc of the PID namespace whose first process is ``init``
    here.
    """
    try:
        fd = open_in_proc("1", directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            signal.pidfd_send_signal(fd, 0)  # EBADF where it is no directory of a /proc
        finally:
            os.close(fd)
        return _started(_read("1/stat", directory)) == _started(_read(f"{init}/stat"))
    except OSError:
        return False


def _started(stat: bytes) -> tuple[bytes, bytes]:
    """Return a process's name and when it has started (field 22), which no other init shares."""
    name, _, rest = stat.partition(b"(")[2].rpartition(b")")
    return name, rest.split()[19]


def is_in_namespace_of(pid: int, other: int) -> bool:
    """Tell whether a process is in the PID namespace of another, or in one below it; not where
    either has ended.
    """
    try:
        wanted = os.stat(f"/proc/{other}/ns/pid")
        space = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        while not os.path.samestat(os.fstat(space), wanted):
            parent = fcntl.ioctl(space, _NS_GET_PARENT)  # EPERM past one's own
            os.close(space)
            space = parent
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(space)


def argument_area() -> tuple[int, int]:
    """Return address and length of the memory that /proc/self/cmdline shows (proc_pid_stat(5))."""
    fields = _read("self/stat").rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, fields 48 and 49
    return start, end - start


def number_inside(pid: int) -> int:
    """Return the number that a process has in its own PID namespace; 0 where it has ended."""
    try:
        status = _read(f"{pid}/status")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next(
        (int(line.split()[-1]) for line in status.splitlines() if line.startswith(b"NSpid:")), 0
    )


def die_with_parent() -> None:
    """Have the kernel kill the calling process when the thread that forked it ends
    (PR_SET_PDEATHSIG(2const)).
    """
    sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)


def close_others(kept: set[int]) -> None:
    """Close every descriptor past stderr that is not in ``kept``."""
    previous = 2
    for fd in sorted(kept):
        os.closerange(previous + 1, fd)
        previous = max(previous, fd)
    os.closerange(previous + 1, 1 << 20)


def inheritable_descriptors() -> set[int]:
    """Return the descriptors of this process that stay open when it executes a program."""
    found = set()
    for name_ in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that listed them is closed
            if not fcntl.fcntl(int(name_), fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                found.add(int(name_))
    return found


def is_near(pid: int) -> bool:
    """Whether a process is in the PID namespace that this one's /proc shows, and not in one below
    it: then it has one number only.
    """
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        return any(line.startswith("NSpid:") and len(line.split()) == 2 for line in file)


def working_directory(pid: int) -> str:
    """Return a process's working directory; "/" where this one may not look."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return "/"


def add_raised_ulimits(
    program: Program, step: str, ulimits: Iterable[tuple[str, int, int]]
) -> None:
    """Raise the hard limits of the process to those that its payloads ask for (prlimit(2))."""
    for name, hard, soft_now, _hard_now in _ulimits_to_raise(ulimits):
        program.add(step, "prlimit64", 0, ulimit(name), struct.pack("qq", soft_now, hard), None)


def describe_ulimits_to_raise(ulimits: Iterable[tuple[str, int, int]]) -> str:
    """Return which of these are over the hard limits of the process, for an error."""
    return "; ".join(
        f"{name}={hard} is over the hard limit of {hard_now}, which may not be raised"
        for name, hard, _soft_now, hard_now in _ulimits_to_raise(ulimits)
    )


def _ulimits_to_raise(
    ulimits: Iterable[tuple[str, int, int]],
) -> Iterator[tuple[str, int, int, int]]:
    for name, _soft, hard in ulimits:
        soft_now, hard_now = _limits(name)
        if hard_now != resource.RLIM_INFINITY and (
            hard == resource.RLIM_INFINITY or hard > hard_now
        ):
            yield name, hard, soft_now, hard_now


def _limits(name: str) -> tuple[int, int]:
    return resource.getrlimit(ulimit(name))


def add_ulimits(program: Program, step: str, ulimits: Iterable[tuple[str, int, int]]) -> None:
    """Set the resource limits ``(name, soft, hard)`` of the process (prlimit(2))."""
    for name, soft, hard in ulimits:
        program.add(step, "prlimit64", 0, ulimit(name), struct.pack("qq", soft, hard), None)


def add_hidden_from_oom(program: Program, step: str) -> None:
    """Keep the kernel's memory killer from choosing this process where another will do
    (proc_pid_oom_score_adj(5)); not for a user to say.
    """
    program.write(step, b"/proc/self/oom_score_adj", b"-1000", go_on=True)


def ulimit(name: str) -> int:
    """Return the kernel's number of a resource limit by docker's name."""
    number: int = getattr(resource, f"RLIMIT_{name.upper()}", _RLIMIT_LOCKS)
    return number


def path_of(fd: int) -> str:
    """Return a path by which this process reaches what a descriptor of its own refers to."""
    return f"/proc/self/fd/{fd}"
