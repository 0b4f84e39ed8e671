"""Users and groups by a container's own files, read as data: the C library would load modules from an image to find them (CVE-2019-14271)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pytest_sandbox.errors import SettingsError

__all__ = ["User", "find", "find_group"]

Read = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class User:
    """Who a process is."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def find(text: str, read: Read) -> User:
    """Read ``USER[:GROUP]``, each a name or a number, as docker does: an unknown number is fine.

    ``read`` returns a file's text, empty where there is none. An unknown name is a :class:`SettingsError`.
    """
    name, _, group = text.partition(":")
    entry = next((fields for fields in _lines(read, "/etc/passwd", 7) if name in (fields[0], fields[2])), None)
    if entry is None and not name.isdigit():
        raise SettingsError("user", text, f"a number, or a name of the container's /etc/passwd, which has no {name!r}")
    uid, gid = (int(entry[2]), int(entry[3])) if entry else (int(name), 0)
    home = entry[5] if entry else "/"
    known = _lines(read, "/etc/group", 4)
    if group:
        return User(uid, _group(group, known, "user", text), (), home)
    more = {int(fields[2]) for fields in known if entry and entry[0] in fields[3].split(",")}
    return User(uid, gid, tuple(sorted(more)), home)


def find_group(text: str, read: Read) -> int:
    """Return the number of a group by its name or number; an unknown name is a :class:`SettingsError`."""
    return _group(text, _lines(read, "/etc/group", 4), "group", text)


def _group(text: str, known: list[list[str]], key: str, asked: str) -> int:
    found = next((fields for fields in known if text in (fields[0], fields[2])), None)
    if found is None and not text.isdigit():
        raise SettingsError(key, asked, f"a number, or a name of the container's /etc/group, which has no {text!r}")
    return int(found[2]) if found else int(text)


def _lines(read: Read, path: str, count: int) -> list[list[str]]:
    """Read the rows of ``count`` fields with a number in the third, and of seven also in the fourth."""
    rows = [line.split(":") for line in read(path).splitlines()]
    numbers = (2, 3) if count == 7 else (2,)
    return [row for row in rows if len(row) == count and all(row[place].isdecimal() for place in numbers)]
