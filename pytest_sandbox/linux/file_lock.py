"""Locks on files and directories that end with their holder (flock(2)), verified to be locks of
what the path names now.

The holder of a lock may remove the file. Whoever opened it before and locks it afterwards then has
the lock of a file without a name, so every function here compares the descriptor with the path once
it has the lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import suppress

__all__ = ["create_locked", "lock_directory", "lock_shared", "try_lock"]

_PATIENCE = 10.0
_PAUSE = 0.001


def create_locked(path: str) -> int:
    """Create the file ``path`` (mode 0600) and lock it exclusively; return the descriptor that
    holds the lock, above 2.

    Raises FileExistsError where the file exists. The wait is for a cleanup of this user, which
    finds nothing to do for a new session.
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
        os.close(fd)  # a cleanup locked it first, and removed it


def lock_directory(path: str) -> int:
    """Lock the directory ``path`` with a shared lock; return the descriptor that holds the lock,
    above 2.

    Raises FileNotFoundError where it does not exist or a cleanup removed it, TimeoutError where it
    cannot be locked within 10 seconds.
    """
    fd = _above_standard_streams(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        if _lock_shared(fd, path, time.monotonic() + _PATIENCE):
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    raise FileNotFoundError(2, "it was removed while it was locked", path)


def lock_shared(path: str, *, create: bool = True) -> int:
    """Lock the file ``path`` with a shared lock, and return the descriptor that holds the lock.

    The wait has no deadline: a process that locks such a file exclusively only removes it. A file
    that does not exist is created (mode 0600), or FileNotFoundError is raised without ``create``.
    On a read-only file system the existing file is locked.
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
        os.close(fd)  # the process that held it has removed it


def try_lock(path: str, *, create: bool = False) -> int | None:
    """Lock a file or directory exclusively without waiting; return the descriptor, None where it is
    held, gone or not accessible.

    With ``create`` a file that does not exist is created (mode 0600), and the OSError of a file
    that cannot be opened is raised.
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
    except (
        OSError
    ):  # held, or a file system without locks, where nobody can tell whether it is held
        os.close(fd)
        return None
    if is_same(fd, path):
        return fd
    os.close(fd)
    return None


def is_same(fd: int, path: str) -> bool:
    """Tell whether ``path`` names the file that is open as ``fd``."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    return False


def _lock_shared(fd: int, path: str, deadline: float) -> bool:
    """Lock ``fd``; return False where ``path`` no longer names it. A cleanup holds a lock for a
    moment only.
    """
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(110, "another process holds its lock", path) from None
            time.sleep(_PAUSE)
        else:
            return is_same(fd, path)


def _above_standard_streams(fd: int) -> int:
    """Move a descriptor above 2: a process without stdin has low numbers free, which are replaced
    in the processes that it starts.
    """
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)
