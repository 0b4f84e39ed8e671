"""Locks that die with their holder (flock(2)): shared while something is used, exclusive while it is made or removed.

filelock, which guards the store's index, knows exclusive locks only; these are the pins beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

__all__ = ["lock_file", "lock_folder", "share", "try_exclusive"]


def lock_file(path: str, *, shared: bool, make: bool = True) -> int:
    """Wait for the lock of the file ``path``; the descriptor returned holds it until it is closed.

    Where the file is not there, it is made, or FileNotFoundError says so.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0), 0o600)
        fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        if _is_still(fd, path):
            return fd
        os.close(fd)  # whoever held it has removed it: what we locked has no name any more


def lock_folder(path: str) -> int:
    """Hold a new folder that nobody else uses yet."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def try_exclusive(path: str) -> int | None:
    """Hold the file or folder ``path`` alone, if nobody holds it now; None where somebody does, or where it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def share(fd: int) -> None:
    """Let others use what was made alone (flock(2): not atomic, so look again whether it is there)."""
    fcntl.flock(fd, fcntl.LOCK_SH)


def _is_still(fd: int, path: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), os.stat(path))
    return False
