"""Walk directory trees through descriptors (openat(2)), without following symbolic links.

This is safe if other processes change the tree meanwhile. There is no limit on the length of a path
(PATH_MAX) or the depth of a tree: a fixed number of descriptors is open at a time.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Self

from pytest_sandbox.linux import process
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.linux.temporary_descriptors import TemporaryDescriptors

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DIRECTORY", "DirectoryStack", "OpenDirectory", "batches", "open_entry", "open_regular"]

#: The flags to open a directory for reading, never through a symbolic link.
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ENTRY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_REGULAR = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MAX_OPEN = 32
_BATCH = 10_000

Identity = tuple[int, int]


def open_entry(name: str, directory: int) -> int:
    """Return an O_PATH descriptor of an entry of any type.

    Unlike another open(2), that has no effect on a FIFO or a device.
    """
    return os.open(name, _ENTRY, dir_fd=directory)


def open_regular(entry: int) -> int:
    """Return a descriptor to read the regular file of the O_PATH descriptor ``entry``.

    It is opened through /proc/self/fd (proc_pid_fd(5)), because its name may have been replaced by
    a FIFO or a device.
    """
    return os.open(process.path_of(entry), _REGULAR)


def batches(directory: int, most: int = _BATCH) -> Iterator[list[os.DirEntry[str]]]:
    """Yield the entries of a directory in lists of at most ``most``, each sorted by name."""
    with os.scandir(directory) as entries:
        batch: list[os.DirEntry[str]] = []
        for entry in entries:
            batch.append(entry)
            if len(batch) == most:
                yield sorted(batch, key=_name)
                batch = []
        yield sorted(batch, key=_name)


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


class OpenDirectory:
    """A directory that is open in a ``with`` block; it is closed if a signal handler raises too."""

    def __init__(self, name: str, dir_fd: int | None = None) -> None:
        self._name = name
        self._dir_fd = dir_fd

    def __enter__(self) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        with Deferred():
            self._opened = TemporaryDescriptors()
            fd = os.open(self._name, flags, dir_fd=self._dir_fd)
            self._opened.fds.append(fd)
        return fd

    def __exit__(self, *_exception: object) -> None:
        self._opened.close()


class DirectoryStack:
    """The directories from a root to the current one (:attr:`fd`); the deepest 32 are open.

    The others are reopened through "..", and compared with the device and inode that they had. The
    caller keeps ``root``.
    """

    def __init__(self, root: int) -> None:
        self._identities = [_identity(root)]
        with Deferred():
            self._opened = TemporaryDescriptors()
            self._fds = self._opened.fds
            self._fds.append(os.dup(root))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._opened.close()

    @property
    def fd(self) -> int:
        """Descriptor of the current directory."""
        return self._fds[-1]

    @property
    def device(self) -> int:
        """Device of the current directory (st_dev)."""
        return self._identities[-1][0]

    def push(self, fd: int) -> None:
        """Make ``fd``, a directory in the current one, the current one; the stack closes it."""
        self._fds.append(fd)
        self._identities.append(_identity(fd))
        oldest = len(self._fds) - 1 - _MAX_OPEN
        if oldest >= 0 and self._fds[oldest] >= 0:
            os.close(self._fds[oldest])
            self._fds[oldest] = -1

    def pop(self) -> None:
        """Return to the parent directory.

        Raises OSError (ESTALE) if the current directory was moved elsewhere meanwhile.
        """
        if self._fds[-2] < 0:
            self._fds[-2] = self._reopen()
        os.close(self._fds.pop())
        self._identities.pop()

    def _reopen(self) -> int:
        fd = os.open("..", DIRECTORY, dir_fd=self._fds[-1])
        if _identity(fd) == self._identities[-2]:
            return fd
        os.close(fd)
        raise OSError(errno.ESTALE, "a directory was moved while it was read")


def _identity(fd: int) -> Identity:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
