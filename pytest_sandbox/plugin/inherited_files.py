"""Replacements for the parent's open files in a test process, which could otherwise reopen one for
writing by ``/proc/self/fd``.

===========================================  =======================================================
in the parent                                in the test process
===========================================  =======================================================
standard output and error                    a pipe, which the parent copies
a terminal, in an interactive session        the terminal, opened again: with file status flags of
                                             its own (O_NONBLOCK)
a file open for writing only (a log)         a pipe, which the parent copies to the file
another file, a directory                    the same path, opened inside the container
a socket, a pipe, a memory file              the same: it has no path on the host
===========================================  =======================================================

captured_output.py creates them before the fork; report_channel.py copies the pipes while the parent
waits.
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

__all__ = ["InheritedFiles"]

_CHUNK = 1 << 16
#: Bytes to read from each pipe after the end of the test process: the most that a pipe can hold
#: (/proc/sys/fs/pipe-max-size, pipe(7)).
_MAX_LEFT_IN_PIPE = 1 << 20
_MAX_FILES = 32
#: Milliseconds to wait for the reader of a non-blocking output.
_WRITE_TIMEOUT = 10_000


class InheritedFiles:
    """The replacements, created before the fork.

    ``readers`` maps the parent's end of each pipe to the descriptor to which it is copied.
    ``without`` are descriptors that the caller replaces.
    """

    def __init__(self, config: pytest.Config, *, without: set[int]) -> None:
        self.readers: dict[int, int] = {}
        # The child's ends, by device and inode of the file that each replaces.
        self._writers: dict[tuple[int, int], int] = {}
        self._replaced: dict[int, int] = {}
        self._reopened: dict[int, str] = {}
        self._is_at_terminal = compat.is_at_terminal(config)
        outputs = [fd for fd in compat.host_outputs(config) if _is_open(fd)]
        identities = {_identity(os.fstat(fd)) for fd in outputs}
        for fd in descriptors.open_fds():
            # The list contains the descriptor that was used to read it. That is closed by now, and
            # a pipe created here may have got its number.
            if fd not in without and fd not in self._writers.values():
                with suppress(OSError):
                    self._choose(fd, identities)

    def _choose(self, fd: int, outputs: set[tuple[int, int]]) -> None:
        """Replace a descriptor, have it reopened, or leave it alone."""
        status = os.fstat(fd)
        identity = _identity(status)
        if identity in outputs and descriptors.is_writable(fd):
            self._replace(fd, identity)
            return
        path = descriptors.path_of(fd, status.st_mode)
        if not path:
            return
        is_log = stat.S_ISREG(status.st_mode) and descriptors.is_writable(fd, only=True)
        if identity not in outputs and is_log and len(self._writers) < _MAX_FILES:
            self._replace(fd, identity)
        else:
            self._reopened[fd] = path

    def _replace(self, fd: int, identity: tuple[int, int]) -> None:
        if identity not in self._writers:
            is_terminal = self._is_at_terminal and os.isatty(fd)
            self._writers[identity] = self._reopen_terminal(fd) if is_terminal else self._pipe(fd)
        self._replaced[fd] = self._writers[identity]

    @staticmethod
    def _reopen_terminal(fd: int) -> int:
        with suppress(OSError):  # it may have no name in this mount namespace (ttyname(3), ENODEV)
            return os.open(os.ttyname(fd), os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        return os.dup(fd)

    def _pipe(self, fd: int) -> int:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reader, False)
        self.readers[reader] = fd
        return writer

    def in_child(self) -> None:
        """Replace and reopen the descriptors."""
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
        """Close the child's ends."""
        for writer in self._writers.values():
            os.close(writer)
        self._writers.clear()

    def abandon(self) -> None:
        """Close the parent's ends in the process of another test."""
        for reader in self.readers:
            os.close(reader)
        self.readers.clear()

    def copy(self, reader: int) -> bool:
        """Copy one chunk from a pipe; return False at its end."""
        try:
            part = os.read(reader, _CHUNK)
        except BlockingIOError:
            return True
        _write(self.readers[reader], part)
        return bool(part)

    def copy_all(self, reader: int) -> None:
        """Copy what is in a pipe."""
        left = _MAX_LEFT_IN_PIPE
        with suppress(BlockingIOError):
            while left > 0 and (part := os.read(reader, _CHUNK)):
                _write(self.readers[reader], part)
                left -= len(part)

    def close(self) -> None:
        """Copy what is left in the pipes, and close them."""
        self.in_parent()
        for reader in self.readers:
            self.copy_all(reader)
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
    """Write all of ``data``; drop the rest when nobody reads it for ten seconds.

    The descriptor may be non-blocking: that is a property of the open file, which other processes
    share.
    """
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            if not poll.poll(_WRITE_TIMEOUT):
                return
        except OSError:  # the reader has gone: pytest's own next write reports it
            return
