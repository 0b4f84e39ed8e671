"""The last output of a command, kept by a thread of this process.

The thread reads the pipe as soon as something is in it, so that a command never waits because its
output is not read. Nothing here takes a lock: a fork of this process has no such thread, and must
not find a lock that it holds.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections import deque
from contextlib import suppress

from pytest_sandbox.linux.signals import Deferred

__all__ = ["KEPT_BYTES", "KeptLog"]

#: Bytes of output that are kept.
KEPT_BYTES = 1 << 20
_CHUNK = 1 << 16
#: Parts that are smaller are joined: a command may write single bytes, and each part takes memory.
_SMALL = 1 << 12
#: Room for output while this process is busy: the default of /proc/sys/fs/pipe-max-size (pipe(7)).
_PIPE_BYTES = 1 << 20
#: Seconds for the thread to end once every process that writes has ended.
_END_TIMEOUT = 1.0


class KeptLog:
    """A pipe for the output of a command, whose last megabyte is kept.

    ``writer`` is the end for the command, to be closed by :meth:`close_writer` once it has been
    started. ``changed`` is a descriptor that becomes readable (poll(2)) when there is more output.
    """

    def __init__(self) -> None:
        with Deferred():
            self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
            self.changed = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        with suppress(OSError):  # EPERM, if this user has too much in pipes
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        #: The output, each part with its position in the whole.
        self._parts: deque[tuple[int, bytes]] = deque()
        self._thread = threading.Thread(
            target=self._collect, daemon=True, name="pytest-sandbox-log"
        )
        self._thread.start()

    def _collect(self) -> None:
        end = 0
        while part := os.read(self._reader, _CHUNK):
            self._append(end, part)
            end += len(part)
            while self._parts[0][0] + len(self._parts[0][1]) <= end - KEPT_BYTES:
                self._parts.popleft()
            os.eventfd_write(self.changed, 1)

    def _append(self, position: int, part: bytes) -> None:
        if self._parts:
            first, last = self._parts[-1]
            if len(last) + len(part) <= _SMALL:
                self._parts[-1] = (first, last + part)  # a copy of the parts has either
                return
        self._parts.append((position, part))

    def since(self, position: int) -> tuple[int, bytes]:
        """Return the kept output from a position in the whole on, and the position of its first
        byte.
        """
        parts = [part for part in self._parts.copy() if part[0] + len(part[1]) > position]
        if not parts:
            return position, b""
        first = max(position, parts[0][0])
        data = b"".join(data for _position, data in parts)
        return first, data[first - parts[0][0] :]

    def text(self) -> str:
        """Return the last megabyte of the output."""
        return self.since(0)[1][-KEPT_BYTES:].decode(errors="replace")

    def descriptors(self) -> list[int]:
        """Return the descriptors, which a fork inside must not have."""
        return [fd for fd in (self._reader, self.writer, self.changed) if fd >= 0]

    def close_writer(self) -> None:
        """Close the command's end in this process."""
        with Deferred():
            writer, self.writer = self.writer, -1
            if writer >= 0:
                os.close(writer)

    def await_end(self) -> None:
        """Wait until everything is read, if every process that writes has ended."""
        self._thread.join(_END_TIMEOUT)

    def close(self) -> None:
        """Release the descriptors; the text stays. A second call does nothing."""
        self.close_writer()
        self.await_end()
        if self._thread.is_alive():  # something still writes: its descriptors must stay valid
            return
        with Deferred():
            fds = [fd for fd in (self._reader, self.changed) if fd >= 0]
            self._reader = self.changed = -1
            for fd in fds:
                os.close(fd)
