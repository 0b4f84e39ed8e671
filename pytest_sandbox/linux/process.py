"""Processes: pidfds, exit statuses, descendants, and what /proc says about them.

See pidfd_open(2), proc_pid(5) and the pages on the files of a process.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import select
import signal
import struct
from contextlib import suppress

from pytest_sandbox.linux import syscall as sc

__all__ = [
    "PROC",
    "argument_memory",
    "await_exit",
    "close_others",
    "comm",
    "command_line",
    "descendants",
    "die_with_parent",
    "ended",
    "inheritable_descriptors",
    "is_dead",
    "is_in_namespace_of",
    "is_in_own_pid_namespace",
    "is_proc_of",
    "is_readable",
    "kill",
    "milliseconds",
    "namespace_pid",
    "open_in_proc",
    "path_of",
    "reap",
    "thread_names",
    "working_directory",
]

#: The mount point of procfs, in every root.
PROC = "/proc"
# <linux/pidfd.h>
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_SIZE, _PIDFD_INFO_EXIT = 64, 1 << 3
_NS_GET_PARENT = 0xB702  # <linux/nsfs.h>
_LONGEST_POLL = (1 << 31) - 1


def kill(pidfd: int, signum: int) -> None:
    """Send a signal to the process of ``pidfd``, if it has not ended."""
    try:
        signal.pidfd_send_signal(pidfd, signum)
    except ProcessLookupError:
        return
    except OSError as error:
        # EBADF: ``pidfd`` is a placeholder (/dev/null) for a process that ended before
        # pidfd_open(2).
        if error.errno != errno.EBADF or os.fstat(pidfd).st_rdev == 0:
            raise


def await_exit(pid: int, pidfd: int | None, timeout: float | None) -> int | None:
    """Wait up to ``timeout`` seconds (None: without limit) for a child to end, and reap it.

    ``pidfd`` is None if the caller has none. Returns the exit status, negative for a signal; None
    if the child has not ended, or its status is lost (see :func:`reap`).
    """
    if pidfd is not None:
        return reap(pid, pidfd) if ended(pidfd, timeout) else None
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:  # somebody else has reaped it
        return None
    try:
        return await_exit(pid, pidfd, timeout)
    finally:
        os.close(pidfd)


def reap(pid: int, pidfd: int) -> int | None:
    """Reap a child that has ended, and return its exit status, negative for a signal.

    The status is lost, and None is returned, if the caller of this library ignores SIGCHLD or has a
    handler that waits for every child (wait(2)), and the kernel is older than Linux 6.15.
    """
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return _exit_status(pidfd)
    return os.waitstatus_to_exitcode(status) if found else None


def _exit_status(pidfd: int) -> int | None:
    """Return the exit status of a process that was reaped elsewhere (PIDFD_GET_INFO)."""
    info = bytearray(_PIDFD_INFO_SIZE)
    struct.pack_into("=Q", info, 0, _PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:  # before Linux 6.15
        return None
    mask, status = struct.unpack_from("=Q", info)[0], struct.unpack_from("=i", info, 60)[0]
    return os.waitstatus_to_exitcode(status) if mask & _PIDFD_INFO_EXIT else None


def comm(pid: int) -> bytes:
    """Return the command name of a process (proc_pid_comm(5)), at most 15 bytes.

    It is empty if the process has ended.
    """
    try:
        return _read(f"{pid}/comm").rstrip(b"\n")
    except (FileNotFoundError, ProcessLookupError):
        return b""


def ended(pidfd: int, timeout: float | None = None) -> bool:
    """Wait up to ``timeout`` seconds (None: without limit) for the process of ``pidfd`` to end.

    Returns whether it has ended.
    """
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0 if timeout == 0 else milliseconds(timeout)))


def milliseconds(seconds: float | None) -> int | None:
    """Return a timeout in milliseconds for poll(2), rounded up; None for no timeout.

    poll(2) takes a C int, so a longer timeout than 24 days becomes 24 days.
    """
    if seconds is None:
        return None
    return math.ceil(min(max(seconds, 0) * 1000, _LONGEST_POLL))


def is_readable(fd: int, timeout: float = 0) -> bool:
    """Wait up to ``timeout`` seconds until a read would not block; return whether it would not."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(milliseconds(timeout) if timeout else 0))


def command_line(pid: int, directory: int) -> str:
    """Return the command line of a process, or its name in brackets, as ps(1) shows it.

    ``directory`` is a descriptor of the /proc in which it has the PID ``pid``. The result is empty
    if the process has ended.
    """
    try:
        arguments = _read(f"{pid}/cmdline", directory).rstrip(b"\0").split(b"\0")
        if arguments != [b""]:
            return b" ".join(arguments).decode(errors="backslashreplace")
        return f"[{_read(f'{pid}/comm', directory).decode(errors='backslashreplace').strip()}]"
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _read(name: str, directory: int | None = None) -> bytes:
    """Return the content of a file in /proc, or in the /proc of the descriptor ``directory``."""
    fd = (
        os.open(f"/proc/{name}", os.O_RDONLY | os.O_CLOEXEC)
        if directory is None
        else open_in_proc(name, directory)
    )
    with open(fd, "rb") as file:
        return file.read()


def open_in_proc(name: str, proc: int, flags: int = os.O_RDONLY) -> int:
    """Open a file in a container's /proc, and nothing that was mounted or linked there.

    A privileged payload can mount over it, and the path would then be resolved on the host. Raises
    FileNotFoundError in that case.
    """
    resolve = sc.RESOLVE_BENEATH | sc.RESOLVE_NO_SYMLINKS | sc.RESOLVE_NO_XDEV
    try:
        return sc.openat2(name, flags | os.O_NONBLOCK, resolve, dir_fd=proc)
    except OSError as error:
        if error.errno in {errno.EXDEV, errno.ELOOP}:
            raise FileNotFoundError(errno.ENOENT, "something else is mounted there", name) from None
        raise


def descendants(pid: int) -> list[int]:
    """Return ``pid`` and the PIDs of all its descendants (proc_pid_task_children(5))."""
    found = [pid]
    for parent in found:
        with suppress(FileNotFoundError, ProcessLookupError):
            for thread in os.listdir(f"/proc/{parent}/task"):  # a child belongs to a thread
                found.extend(map(int, _read(f"{parent}/task/{thread}/children").split()))
    return found


def is_dead(pid: str, directory: int) -> bool:
    """Return whether a process has ended, reaped or not.

    A process whose main thread has ended is shown as a zombie while other threads run
    (proc_pid_stat(5)), so the number of threads counts too.
    """
    try:
        fields = _read(f"{pid}/stat", directory).rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return True
    state, threads = fields[0], int(fields[17])  # fields 3 and 20
    return state in {b"Z", b"X"} and threads <= 1


def is_proc_of(directory: int, init: int) -> bool:
    """Return whether a descriptor is the /proc of the PID namespace whose init is ``init`` here."""
    try:
        fd = open_in_proc("1", directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            signal.pidfd_send_signal(fd, 0)  # EBADF: not a directory of a /proc
        finally:
            os.close(fd)
        return _name_and_start(_read("1/stat", directory)) == _name_and_start(_read(f"{init}/stat"))
    except OSError:
        return False


def _name_and_start(stat: bytes) -> tuple[bytes, bytes]:
    """Return the name and the start time (field 22) of /proc/PID/stat, which identify an init."""
    name, _, rest = stat.partition(b"(")[2].rpartition(b")")
    return name, rest.split()[19]


def is_in_namespace_of(pid: int, other: int) -> bool:
    """Return whether a process is in the PID namespace of ``other`` or in a descendant of it.

    It is False if one of them has ended.
    """
    try:
        wanted = os.stat(f"/proc/{other}/ns/pid")
        namespace = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        while not os.path.samestat(os.fstat(namespace), wanted):
            # EPERM if the parent is outside of the caller's own namespace (NS_GET_PARENT(2const)).
            parent = fcntl.ioctl(namespace, _NS_GET_PARENT)
            os.close(namespace)
            namespace = parent
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(namespace)


def argument_memory() -> tuple[int, int]:
    """Return the address and length of the memory that /proc/self/cmdline shows."""
    fields = _read("self/stat").rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # fields 48, 49 (proc_pid_stat(5))
    return start, end - start


def namespace_pid(pid: int) -> int:
    """Return the PID that a process has in its own PID namespace; 0 if it has ended."""
    try:
        status = _read(f"{pid}/status")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next(
        (int(line.split()[-1]) for line in status.splitlines() if line.startswith(b"NSpid:")), 0
    )


def die_with_parent() -> None:
    """Have the kernel kill the calling process when its parent ends (PR_SET_PDEATHSIG(2const)).

    The parent is the thread that has forked it.
    """
    sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)


def close_others(kept: set[int]) -> None:
    """Close every descriptor above 2 that is not in ``kept``."""
    previous = 2
    for fd in sorted(kept):
        os.closerange(previous + 1, fd)
        previous = max(previous, fd)
    os.closerange(previous + 1, 1 << 20)


def inheritable_descriptors() -> set[int]:
    """Return the open descriptors of this process without FD_CLOEXEC."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the descriptor that listdir used is closed
            if not fcntl.fcntl(int(name), fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                found.add(int(name))
    return found


def is_in_own_pid_namespace(pid: int) -> bool:
    """Return whether a process is in the PID namespace of /proc, and not in a descendant.

    Then it has a single PID in the line NSpid (proc_pid_status(5)).
    """
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        return any(line.startswith("NSpid:") and len(line.split()) == 2 for line in file)


def thread_names() -> dict[int, str]:
    """Return the kernel's name of each thread of this process, by its ID (proc_tid_comm(5))."""
    found = {}
    for name in os.listdir("/proc/self/task"):
        with suppress(OSError):  # it has ended
            found[int(name)] = os.fsdecode(_read(f"self/task/{name}/comm").rstrip())
    return found


def working_directory(pid: int) -> str:
    """Return the working directory of a process; "/" if it cannot be read."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return "/"


def path_of(fd: int) -> str:
    """Return a path that opens the file of a descriptor of this process (proc_pid_fd(5))."""
    return f"/proc/self/fd/{fd}"
