"""The one parser of /proc/PID/mountinfo (proc_pid_mountinfo(5)).

Lines end at a newline and fields at a space, and at nothing else: a path may hold every other byte.
The kernel writes a space, a tab, a newline and a backslash of a path in octal, so the file is read
as bytes and a path is decoded only once it is whole (os.fsdecode()).
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

__all__ = ["PATH", "Entry", "parse", "read"]

#: The mounts of the calling process's mount namespace that lie below its root.
PATH = "/proc/self/mountinfo"
_OCTAL = re.compile(rb"\\([0-7]{3})")
_CHUNK = 1 << 16


class Entry(NamedTuple):
    """One mount.

    ``root`` is the part of the file system that is seen at ``point``; ``options`` are the mount's,
    ``super_options`` the file system's.
    """

    root: str
    point: str
    options: frozenset[str]
    fstype: str
    super_options: frozenset[str]


def parse(data: bytes) -> list[Entry]:
    """Return the mounts in the order of the file.

    Raises :class:`ValueError` for what is no mountinfo.
    """
    return [_parsed(line) for line in data.split(b"\n") if line]


def read(path: str = PATH) -> bytes:
    """Return the content of a mountinfo file.

    Raises :class:`OSError`.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(iter(lambda: os.read(fd, _CHUNK), b""))
    finally:
        os.close(fd)


def _parsed(line: bytes) -> Entry:
    front, separator, back = line.partition(
        b" - "
    )  # ends the optional fields, of which there may be none
    fields, rest = front.split(b" "), back.split(b" ", 2)
    if not separator or len(fields) < 6 or len(rest) < 3:
        raise ValueError(f"not a line of mountinfo: {line!r}")
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
