"""What a test's process has in place of the parent's open files, so that it cannot reopen one for
writing.

=========================================  ================================================================
of the parent's                            the test's process has
=========================================  ================================================================
standard output and error                  a pipe, which the parent copies
a terminal at which a person sits          the terminal, opened anew: its flags are not the parent's
a file that is open for writing only       a pipe, which the parent copies to the file (a log)
any other file, and a directory            the same, opened inside the container
a socket, a pipe, a file in memory         the same: they have no path on the host
=========================================  ================================================================
"""

from __future__ import annotations

import os
import select
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.linux import descriptors
from pytest_sandbox.plugin import compat

if TYPE_CHECKING:
    import pytest

__all__ = ["Outputs"]

_CHUNK = 1 << 16
#: What is still read of each pipe after the end of the process: as much as a pipe may hold
#: (pipe(7)).
_MOST_LEFT = 1 << 20
_MOST_FILES = 32
#: Milliseconds for which a reader that is not ready, of a descriptor that does not block, is waited
#: for.
_PATIENCE = 10_000


class Outputs:
    """Made before the fork; ``readers`` are the parent's ends, each with the descriptor that it is
    copied to.
    """

    def __init__(self, config: pytest.Config, *, without: set[int]) -> None:
        self.readers: dict[int, int] = {}
        self._writers: dict[tuple[int, int], int] = {}
        self._replaced: dict[int, int] = {}
        self._reopened: dict[int, str] = {}
        self._own = compat.host_outputs(config)
        self._at_terminal = compat.is_at_terminal(config)
        known = {_identity(os.fstat(fd)) for fd in self._own if _is_open(fd)}
        for fd in descriptors.open_fds():
            # The list has the number of the directory's own descriptor, which may be a writer's
            # now.
            if fd not in without and fd not in self._writers.values():
                with suppress(OSError):
                    self._spec(fd, known)

    def _spec(self, fd: int, known: set[tuple[int, int]]) -> None:
        status = os.fstat(fd)
        identity = _identity(status)
        if identity in known:
            if descriptors.is_writable(fd):
                self._replace(fd, identity)
            elif path := descriptors.path_of(fd, status.st_mode):
                self._reopened[fd] = path
        elif path := descriptors.path_of(fd, status.st_mode):
            is_log = stat.S_ISREG(status.st_mode) and descriptors.is_writable(fd, only=True)
            if is_log and len(self._writers) < _MOST_FILES:
                self._replace(fd, identity)
            else:
                self._reopened[fd] = path

    def _replace(self, fd: int, identity: tuple[int, int]) -> None:
        if identity not in self._writers:
            self._writers[identity] = (
                self._opened_again(fd) if self._at_terminal and os.isatty(fd) else self._piped(fd)
            )
        self._replaced[fd] = self._writers[identity]

    @staticmethod
    def _opened_again(fd: int) -> int:
        with suppress(OSError):  # it may have no name here
            return os.open(os.ttyname(fd), os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        return os.dup(fd)

    def _piped(self, fd: int) -> int:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reader, False)
        self.readers[reader] = fd
        return writer

    def in_fork(self) -> None:
        """Replace the descriptors."""
        for reader in self.readers:
            os.close(reader)
        for fd, writer in self._replaced.items():
            os.dup2(writer, fd, inheritable=os.get_inheritable(fd))
        for writer in self._writers.values():
            os.close(writer)
        for fd, path in self._reopened.items():
            if _is_open(fd):
                descriptors.reopen(fd, path)

    def in_parent(self) -> None:
        """Keep the parent's ends."""
        for writer in self._writers.values():
            os.close(writer)
        self._writers.clear()

    def copy(self, reader: int) -> bool:
        """Copy what is in a pipe, a chunk of it; False at its end."""
        try:
            part = os.read(reader, _CHUNK)
        except BlockingIOError:
            return True
        _write(self.readers[reader], part)
        return bool(part)

    def close(self) -> None:
        """Copy what is still in the pipes, and close them."""
        self.in_parent()
        for reader, target in self.readers.items():
            left = _MOST_LEFT
            with suppress(BlockingIOError):
                while left > 0 and (part := os.read(reader, _CHUNK)):
                    _write(target, part)
                    left -= len(part)
            os.close(reader)
        self.readers.clear()


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _write(fd: int, data: bytes) -> None:
    """Write all, also where somebody has set O_NONBLOCK; what nobody takes is lost."""
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            if not poll.poll(_PATIENCE):
                return
        except OSError:  # a reader that is gone: pytest's own next write says so
            return
