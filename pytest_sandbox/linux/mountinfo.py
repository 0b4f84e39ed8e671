"""Parse /proc/PID/mountinfo (proc_pid_mountinfo(5)).

Only a newline ends a line and only a space ends a field: a path may contain any other byte. The
kernel escapes space, tab, newline and backslash in octal, so the file is split as bytes, and paths
are unescaped before they are decoded (os.fsdecode()).
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

__all__ = ["PATH", "Entry", "parse", "read"]

#: The mounts of the calling process's mount namespace below its root directory.
PATH = "/proc/self/mountinfo"
_OCTAL = re.compile(rb"\\([0-7]{3})")
_CHUNK = 1 << 16


class Entry(NamedTuple):
    """A mount: the directory ``root`` of a file system, mounted on ``point``.

    ``options`` are those of the mount, ``super_options`` those of the file system.
    """

    root: str
    point: str
    options: frozenset[str]
    fstype: str
    super_options: frozenset[str]


def parse(data: bytes) -> list[Entry]:
    """Return the mounts in the order of the file; raises ValueError for a malformed line."""
    return [_parse_line(line) for line in data.split(b"\n") if line]


def read(path: str = PATH) -> bytes:
    """Return the content of a mountinfo file; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(iter(lambda: os.read(fd, _CHUNK), b""))
    finally:
        os.close(fd)


def _parse_line(line: bytes) -> Entry:
    # The separator ends the optional fields, of which there may be none.
    front, separator, back = line.partition(b" - ")
    fields, rest = front.split(b" "), back.split(b" ", 2)
    if not separator or len(fields) < 6 or len(rest) < 3:
        raise ValueError(f"malformed line of mountinfo: {line!r}")
    return Entry(
        _path(fields[3]),
        _path(fields[4]),
        _options(fields[5]),
        os.fsdecode(rest[0]),
        _options(rest[2]),
    )


def _options(field: bytes) -> frozenset[str]:
    return frozenset(os.fsdecode(field).split(","))


def _path(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda octal: bytes([int(octal[1], 8)]), field))
