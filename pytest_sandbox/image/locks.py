"""Locks that die with their holder (flock(2)): shared while something is used, exclusive while it
is made or removed.

There are three, and one order: the lock of a layer that is being made, then the index (filelock's),
then nothing. A *pin* (shared: somebody counts on the layer) is taken at any time, since whoever
wants it exclusively never waits for it. No lock is ever converted: two holders of a shared lock
that both want it exclusively wait for each other for ever.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from typing import TYPE_CHECKING

from pytest_sandbox.errors import ImageError

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

__all__ = ["lock_directory", "lock_file", "making", "try_exclusive"]

_POLL_SECONDS = 0.02
_LONGEST_MAKING = 3600.0


def lock_file(path: str, *, make: bool = True) -> int:
    """Wait for a shared lock of the file ``path``; the descriptor returned holds it until closed.

    Whoever holds it exclusively removes a layer, and waits for nothing. Where the file is not
    there, it is made, or FileNotFoundError says so.
    """
    while True:
        fd = _opened(path, make=make)
        fcntl.flock(fd, fcntl.LOCK_SH)
        if _is_still(fd, path):
            return fd
        os.close(fd)  # whoever held it has removed it: what we locked has no name any more


def _opened(path: str, *, make: bool) -> int:
    flags = os.O_CLOEXEC | (os.O_CREAT if make else 0)
    try:
        return os.open(path, os.O_RDWR | flags, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # a store that is read only can be used


@contextlib.contextmanager
def making(path: str, stopping: threading.Event) -> Iterator[None]:
    """Hold the file ``path`` alone, to be the only one who makes something; it goes at the end.

    Raises ImageError where ``stopping`` is set, or where another process has held it for an hour.
    """
    ends = time.monotonic() + _LONGEST_MAKING
    while (fd := _try_making(path)) is None:
        if time.monotonic() > ends:
            raise ImageError(
                f"another process has been making this layer for {_LONGEST_MAKING / 60:.0f} "
                f"minutes. End it (`fuser {path}` names it), and try again."
            )
        if stopping.wait(_POLL_SECONDS):
            raise ImageError("interrupted")
    try:
        yield
    finally:
        os.unlink(path)
        os.close(fd)


def _try_making(path: str) -> int | None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT, 0o600)
    return _try_holding(fd, path)


def lock_directory(path: str) -> int:
    """Hold a new directory that nobody else uses yet."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def try_exclusive(path: str) -> int | None:
    """Hold the file or directory ``path`` alone, if nobody holds it now; None where somebody does,
    or where it is gone.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    return _try_holding(fd, path)


def _try_holding(fd: int, path: str) -> int | None:
    """Lock the open file ``fd`` without waiting; close it and return None where it is held or
    gone.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    if _is_still(fd, path):
        return fd
    os.close(fd)
    return None


def _is_still(fd: int, path: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), os.stat(path))
    return False
