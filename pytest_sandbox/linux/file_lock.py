"""Locks on files and directories that end with their holder (flock(2)).

The holder of a lock may remove the file. A process that has opened it before and locks it then has
a lock on a file without a name, so every function here verifies after locking that the path still
refers to the open file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import suppress

__all__ = ["create_locked", "is_same", "lock_directory", "lock_shared", "try_lock"]

_TIMEOUT = 10.0
_PAUSE = 0.001


def create_locked(path: str) -> int:
    """Create the file ``path`` with mode 0600 and lock it; return a descriptor above 2.

    Raises FileExistsError if it exists. It waits for cleanup by this user's processes, which may
    lock a new file for a moment.
    """
    while True:
        fd = _above_standard_streams(
            os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        )
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if is_same(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # cleanup has locked it first, and removed it


def lock_directory(path: str, *, exclusive: bool = False, timeout: float = _TIMEOUT) -> int:
    """Lock the directory ``path``, by default with a shared lock; return a descriptor above 2.

    Raises FileNotFoundError if it does not exist or was removed meanwhile, TimeoutError if it
    cannot be locked within ``timeout`` seconds.
    """
    fd = _above_standard_streams(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    operation = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        _lock(fd, operation, path, time.monotonic() + timeout)
        if is_same(fd, path):
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    raise FileNotFoundError(errno.ENOENT, "it was removed while it was locked", path)


def lock_shared(path: str, *, create: bool = True) -> int:
    """Lock the file ``path`` with a shared lock; return the descriptor that holds the lock.

    There is no timeout, because a process that locks such a file exclusively does so only to
    remove it. A file that does not exist is created with mode 0600; without ``create``,
    FileNotFoundError is raised. On a read-only file system the existing file is locked.
    """
    flags = os.O_CREAT if create else 0
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            if is_same(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # the holder of the lock has removed the file


def try_lock(path: str, *, create: bool = False) -> int | None:
    """Lock a file or directory exclusively without waiting; return the descriptor.

    It is None if the file is locked, does not exist, cannot be opened, or is on a file system
    without locks. With ``create`` a file that does not exist is created with mode 0600, and the
    OSError of a file that cannot be opened is raised.
    """
    flags = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError:
        if create:
            raise
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    if is_same(fd, path):
        return fd
    os.close(fd)
    return None


def is_same(fd: int, path: str) -> bool:
    """Return whether ``path`` refers to the open file ``fd``."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    return False


def _lock(fd: int, operation: int, path: str, deadline: float) -> None:
    """Lock ``fd``; flock(2) has no timeout, so this tries until the deadline."""
    while True:
        try:
            return fcntl.flock(fd, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                message = "another process holds its lock"
                raise TimeoutError(errno.ETIMEDOUT, message, path) from None
            time.sleep(_PAUSE)


def _above_standard_streams(fd: int) -> int:
    """Move a descriptor above 2, where it is not replaced by the standard streams of a child.

    A process without stdin, stdout or stderr has their numbers free.
    """
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)
