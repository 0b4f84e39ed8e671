"""Lock, empty and remove cgroup directories, of either version.

A session's cgroup directory is locked with flock(2) as long as its launcher lives. The lock belongs
to the inode, which is the same in every mount, PID, user and cgroup namespace and in every chroot,
so cleanup in any of them can tell whether the owner is alive.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from typing import TYPE_CHECKING

from pytest_sandbox.linux import file_lock
from pytest_sandbox.linux.cgroup.interface_files import read, write

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

__all__ = [
    "TIMEOUT",
    "destroy",
    "kill_pids",
    "lock_unowned",
    "make_owned",
    "read_pids",
    "remove_directory",
    "remove_unowned",
    "walk",
]

#: Seconds until an operation on a cgroup is given up.
TIMEOUT = 10.0
_ATTEMPTS = 100
_POLL_MILLISECONDS = 100


def read_pids(directory: str) -> tuple[int, ...]:
    """Return the PIDs of the processes in a cgroup; empty if it has been removed.

    Processes of an outer PID namespace are left out: cgroup.procs shows their PID as 0.
    """
    try:
        return tuple(pid for pid in map(int, read(f"{directory}/cgroup.procs").split()) if pid)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENODEV}:  # removed, or removed while it is read
            return ()
        raise


def kill_pids(find: Callable[[], Iterable[int]], timeout: float = TIMEOUT) -> None:
    """Kill the processes that ``find`` returns until it returns none.

    Raises TimeoutError after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while found := set(find()):
        if time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, f"processes {sorted(found)} do not die")
        pidfds = {pid: fd for pid in found if (fd := _pidfd(pid)) is not None}
        # A PID may have been reused before its pidfd was opened: kill only what is still listed.
        listed = set(find())
        for pid, fd in pidfds.items():
            if pid in listed:
                _sigkill(fd)
        _wait_for_any(pidfds.values())


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _sigkill(pidfd: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _wait_for_any(pidfds: Collection[int]) -> None:
    """Wait until one of the processes has ended, and close the descriptors.

    The kernel removes a process from cgroup.procs a little after its pidfd becomes readable.
    """
    poll = select.poll()
    for fd in pidfds:
        poll.register(fd, select.POLLIN)
    poll.poll(_POLL_MILLISECONDS)
    for fd in pidfds:
        os.close(fd)
    time.sleep(0.001)


def remove_directory(directory: str, timeout: float = TIMEOUT) -> None:
    """Remove a cgroup directory if it exists.

    rmdir(2) fails with EBUSY for a moment after the last process was reaped; raises that OSError
    after ``timeout`` seconds.
    """
    deadline, pause = time.monotonic() + timeout, 0.0001
    while True:
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(pause)
            pause = min(pause * 2, 0.01)
        else:
            return


def walk(directory: str) -> Iterator[str]:
    """Yield ``directory`` and every directory below it, children before their parent."""
    try:
        with os.scandir(directory) as entries:
            children = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, PermissionError):
        return
    for path in children:
        yield from walk(path)
    yield directory


def destroy(directories: Iterable[str], timeout: float = TIMEOUT) -> None:
    """Kill every process in the cgroups ``directories`` and below, and remove them."""
    doomed = [path for directory in directories for path in walk(directory)]
    for path in doomed:
        _forbid_forks_and_thaw(path)
    kill_pids(lambda: [pid for path in doomed for pid in read_pids(path)], timeout)
    for path in doomed:
        remove_directory(path, timeout)


def _forbid_forks_and_thaw(directory: str) -> None:
    """Set the limit on processes to 0, and thaw a v1 cgroup: frozen processes do not die there."""
    for name, value in (("pids.max", "0"), ("freezer.state", "THAWED")):
        if os.path.exists(f"{directory}/{name}"):
            write(f"{directory}/{name}", value)


def make_owned(directory: str) -> int:
    """Create and lock a session's cgroup directory; return the descriptor that holds the lock.

    Its mode is 0700, because a user who can open a directory can lock it. Raises FileExistsError if
    it exists, OSError if it cannot be created or locked.
    """
    for _ in range(_ATTEMPTS):
        os.mkdir(directory, 0o700)
        with contextlib.suppress(FileNotFoundError):  # cleanup locked it first, and removed it
            return file_lock.lock_directory(directory)
    raise FileNotFoundError(errno.ENOENT, "another process keeps removing it", directory)


def lock_unowned(directories: Iterable[str]) -> dict[str, int] | None:
    """Lock the cgroups of a session whose owner has ended, so that they can be removed.

    Returns the descriptor that holds the lock by directory; None if one of them has an owner.
    """
    locks: dict[str, int] = {}
    for directory in directories:
        fd = file_lock.try_lock(directory)
        if fd is None and os.path.exists(directory):
            for other in locks.values():
                os.close(other)
            return None
        if fd is not None:
            locks[directory] = fd
    return locks


def remove_unowned(directories: Iterable[str]) -> bool:
    """Remove the empty cgroups of a session whose owner has ended; return whether one was removed.

    Cgroups that still have processes are not touched.
    """
    removed = False
    for directory in directories:
        fd = file_lock.try_lock(directory)
        if fd is not None:
            removed |= _remove_empty(directory)
            os.close(fd)
    return removed


def _remove_empty(directory: str) -> bool:
    removed = False
    for path in walk(directory):
        with contextlib.suppress(OSError):
            os.rmdir(path)
            removed = True
    return removed
