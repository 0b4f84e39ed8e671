"""Users and groups by the files of the root that is in force: the C library would load modules from an image to find them (CVE-2019-14271)."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

__all__ = ["User", "find", "find_group"]

_MOST = 8 << 20  # of a user file


@dataclass(frozen=True, slots=True)
class User:
    """Who a process is."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def find(text: str) -> User:
    """Read ``USER[:GROUP]``, each a name or a number, as docker does: an unknown number is fine.

    An unknown name is a :class:`LookupError`, whose lines are the key, the value and the accepted form of the caller's SettingsError.
    """
    name, _, group = text.partition(":")
    entry = next((fields for fields in _lines("/etc/passwd", 7) if name in (fields[0], fields[2])), None)
    if entry is None and not name.isdigit():
        raise LookupError(f"user\n{text}\na number, or a name of the container's /etc/passwd, which has no {name!r}")
    uid, gid = (int(entry[2]), int(entry[3])) if entry else (int(name), 0)
    home = entry[5] if entry else "/"
    known = _lines("/etc/group", 4)
    if group:
        return User(uid, _group(group, known, "user", text), (), home)
    more = {int(fields[2]) for fields in known if entry and entry[0] in fields[3].split(",")}
    return User(uid, gid, tuple(sorted(more)), home)


def find_group(text: str) -> int:
    """Return the number of a group by its name or number; an unknown name is a :class:`LookupError`."""
    return _group(text, _lines("/etc/group", 4), "group", text)


def _group(text: str, known: list[list[str]], key: str, asked: str) -> int:
    found = next((fields for fields in known if text in (fields[0], fields[2])), None)
    if found is None and not text.isdigit():
        raise LookupError(f"{key}\n{asked}\na number, or a name of the container's /etc/group, which has no {text!r}")
    return int(found[2]) if found else int(text)


def _lines(path: str, count: int) -> list[list[str]]:
    """Read the rows of ``count`` fields with a number in the third, and of seven also in the fourth; what is no plain file has none."""
    rows = [line.split(":") for line in _text(path).splitlines()]
    numbers = (2, 3) if count == 7 else (2,)
    return [row for row in rows if len(row) == count and all(row[place].isdecimal() for place in numbers)]


def _text(path: str) -> str:
    """Read a file that may be anything: neither wait for a FIFO's other end, nor take a terminal, nor read without end."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return ""
    try:
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        return os.read(fd, _MOST).decode("utf-8", "surrogateescape") if regular else ""
    finally:
        os.close(fd)
