"""The log of a detached container: a file of frames, each a part of its output.

A frame is a header (the stream, the time in seconds since the epoch, the number of bytes) and the
bytes as the command has written them.
"""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["STDERR", "STDOUT", "Frame", "LogReader", "LogWriter"]

STDOUT, STDERR = 1, 2
_HEADER = struct.Struct("<BdI")
_CHUNK = 1 << 20


class Frame(NamedTuple):
    """Output of one stream, and the time when it was read."""

    stream: int
    time: float
    data: bytes


class LogWriter:
    """Appends frames to a new file."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        self._size = 0
        #: Why output was discarded: the last error of the file system; None if nothing was.
        self.error: OSError | None = None

    def append(self, stream: int, data: bytes) -> None:
        """Append a frame; on a full disk, discard it and note the error."""
        frame = _HEADER.pack(stream, time.time(), len(data)) + data
        try:
            written = os.write(self._fd, frame)
            if written == len(frame):
                self._size += written
                return
            error = OSError("the disk is full")
        except OSError as failed:
            error = failed
        self.error = error
        os.ftruncate(self._fd, self._size)  # a part of a frame would make the rest unreadable

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class LogReader:
    """Reads the frames of a file that may still grow; the file may be removed meanwhile."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._rest = b""

    def read(self) -> Iterator[Frame]:
        """Yield the complete frames that were not read yet."""
        while data := os.read(self._fd, _CHUNK):
            self._rest += data
            yield from self._complete()

    def _complete(self) -> Iterator[Frame]:
        position = 0
        while position + _HEADER.size <= len(self._rest):
            stream, when, length = _HEADER.unpack_from(self._rest, position)
            start = position + _HEADER.size
            if start + length > len(self._rest):
                break
            position = start + length
            yield Frame(stream, when, self._rest[start:position])
        self._rest = self._rest[position:]

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
