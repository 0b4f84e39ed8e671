"""The log of a detached container: files of frames, each a part of its output.

A frame is a header (the stream, the time in seconds since the epoch, the number of bytes) and the
bytes as the command has written them.

The files are ``log.0``, ``log.1`` and so on. When the last one is full, the next one is created,
and the first one removed if there are too many. A file does not change after the next one exists,
and none is renamed, so a reader that has reached the end of a file goes on with the next.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from pytest_sandbox.errors import SettingsError
from pytest_sandbox.settings.parsers import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["STDERR", "STDOUT", "Frame", "LogLimits", "LogReader", "LogWriter"]

STDOUT, STDERR = 1, 2
_HEADER = struct.Struct("<BdI")
_CHUNK = 1 << 20
_PREFIX: Final = "log."
#: Docker's defaults for its log driver "local".
_MAX_SIZE, _MAX_FILE = 20 << 20, 5
_LEAST_SIZE: Final = 1 << 10
_MOST_FILES: Final = 1000
_SIZE_FORM: Final = "max-size=10m, a size of at least 1k, or max-size=-1 for no limit"
_FILE_FORM: Final = f"max-file=3, a number of files from 1 to {_MOST_FILES}"


class Frame(NamedTuple):
    """Output of one stream, and the time when it was read."""

    stream: int
    time: float
    data: bytes


class LogLimits(NamedTuple):
    """The options of a log by docker's names: at most ``max_file`` files of ``max_size`` bytes
    each. ``max_size`` is None for no limit.
    """

    max_size: int | None = _MAX_SIZE
    max_file: int = _MAX_FILE

    @classmethod
    def read(cls, options: Iterable[tuple[str, str]]) -> Self:
        """Return the limits of ``("max-size", "10m")`` and ``("max-file", "3")``.

        Raises :class:`SettingsError` for an unknown name and an invalid value.
        """
        given: dict[str, Any] = {}
        for name, value in options:
            if name not in _READERS:
                raise SettingsError("log-opt", f"{name}={value}", "max-size=SIZE or max-file=N")
            given[name.replace("-", "_")] = _READERS[name](value)
        return cls(**given)

    @property
    def options(self) -> dict[str, str]:
        """The options as text, for `inspect`."""
        size = "-1" if self.max_size is None else str(self.max_size)
        return {"max-size": size, "max-file": str(self.max_file)}

    @property
    def file_size(self) -> int | None:
        """The size of a file, which is half of the only one: its newest half is never discarded."""
        return self.max_size if self.max_size is None or self.max_file > 1 else self.max_size // 2


def _read_size(text: str) -> int | None:
    if text == "-1":
        return None
    try:
        size = parse_size(text)
    except SettingsError:
        size = 0
    if size < _LEAST_SIZE:
        raise SettingsError("log-opt", f"max-size={text}", _SIZE_FORM)
    return size


def _read_count(text: str) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text) <= _MOST_FILES:
        return int(text)
    raise SettingsError("log-opt", f"max-file={text}", _FILE_FORM)


_READERS: Final[dict[str, Callable[[str], int | None]]] = {
    "max-size": _read_size,
    "max-file": _read_count,
}


class LogWriter:
    """Appends frames to the log in a directory, of which it is the only writer."""

    def __init__(self, directory: str, limits: LogLimits) -> None:
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._file_size, self._count = limits.file_size, max(2, limits.max_file)
        self._number = 0
        #: Why output was discarded: the last error of the file system; None if nothing was.
        self.error: OSError | None = None
        try:
            self._create()
        except BaseException:
            os.close(self._directory)
            raise

    def _create(self) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(_name(self._number), flags, 0o600, dir_fd=self._directory)
        self._size = 0

    def append(self, stream: int, data: bytes) -> None:
        """Append output; on a full disk, discard it and note the error."""
        now = time.time()
        most = len(data) if self._file_size is None else self._file_size - _HEADER.size
        for start in range(0, len(data), most or 1):
            part = data[start : start + most]
            try:
                self._write(_HEADER.pack(stream, now, len(part)) + part)
            except OSError as error:
                self.error = error

    def _write(self, frame: bytes) -> None:
        """Write a frame completely. Raises OSError if it cannot; nothing of it is written then."""
        if self._file_size is not None and self._size + len(frame) > self._file_size:
            self._start_file()
        written = os.write(self._fd, frame)
        if written < len(frame):  # the rest gets an error (write(2))
            os.ftruncate(self._fd, self._size)  # part of a frame would make the rest unreadable
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += len(frame)

    def _start_file(self) -> None:
        """Continue in a new file; remove the oldest one if there are too many."""
        full = self._fd
        self._number += 1
        try:
            self._create()
        except OSError:
            self._number -= 1
            raise
        os.close(full)
        if self._number >= self._count:
            os.unlink(_name(self._number - self._count), dir_fd=self._directory)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
        os.close(self._directory)


class LogReader:
    """Reads the frames of a log that may still grow; the log may be removed meanwhile.

    ``on_gap`` is called before the first frame after output that was removed before it was read:
    the command has written more than the log holds since the last call of :meth:`read`.
    """

    def __init__(self, directory: str, on_gap: Callable[[], None]) -> None:
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._on_gap = on_gap
        self._fd = self._number = -1
        if not self._open_next():
            os.close(self._directory)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{directory}/log.0")

    def read(self) -> Iterator[Frame]:
        """Yield the complete frames that were not read yet."""
        while True:
            # First whether there is a next file: then this one will not grow any more.
            is_complete = any(number > self._number for number in self._numbers())
            yield from self._frames()
            if not is_complete:
                return
            number = self._number
            self._open_next()
            if self._number > number + 1:
                self._on_gap()

    def _numbers(self) -> list[int]:
        names = os.listdir(self._directory)
        found = [one.removeprefix(_PREFIX) for one in names if one.startswith(_PREFIX)]
        return sorted(int(one) for one in found if one.isdecimal())

    def _open_next(self) -> bool:
        """Open the first file after the current one; return whether there is one."""
        for number in self._numbers():
            if number <= self._number:
                continue
            try:
                fd = os.open(_name(number), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
            except FileNotFoundError:  # the writer has removed it meanwhile
                return self._open_next()
            if self._fd >= 0:
                os.close(self._fd)
            self._fd, self._number, self._position = fd, number, 0
            return True
        return False

    def _frames(self) -> Iterator[Frame]:
        """Yield the complete frames of the current file that were not read yet.

        What is incomplete is read again: the writer may have to remove it (a full disk).
        """
        while data := os.pread(self._fd, _CHUNK, self._position):
            frames = list(_complete(data))
            yield from frames
            if not frames:
                return
            self._position += sum(_HEADER.size + len(frame.data) for frame in frames)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
        os.close(self._directory)


def _complete(data: bytes) -> Iterator[Frame]:
    """Yield the complete frames at the start of data."""
    position = 0
    while position + _HEADER.size <= len(data):
        stream, when, length = _HEADER.unpack_from(data, position)
        start = position + _HEADER.size
        position = start + length
        if position > len(data):
            return
        yield Frame(stream, when, data[start:position])


def _name(number: int) -> str:
    return f"{_PREFIX}{number}"
