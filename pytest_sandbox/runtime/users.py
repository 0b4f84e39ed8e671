"""Users and groups by a container's own files, read as data: the C library would load modules from
an image to find them (CVE-2019-14271).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from pytest_sandbox.errors import SettingsError

__all__ = ["HIGHEST", "User", "find", "find_group"]

Read = Callable[[str], str]

#: The highest UID and GID that docker takes. Beyond 32 bits the kernel would see another one, and
#: 4294967295 means
#: "leave it unchanged" to setresuid(2): both could be root.
HIGHEST = 2147483647
_DIGITS = re.compile(
    "[0-9]+"
)  # str.isdigit() is also true of the digits of other scripts, and of "²"
_USERS_FILE = "/etc/passwd"
_GROUPS_FILE = "/etc/group"


@dataclass(frozen=True, slots=True)
class User:
    """Who a process is."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


class _Row(NamedTuple):
    """A row of passwd(5) or group(5): ``id`` is the UID or the GID, ``rest`` are the fields after
    it.
    """

    name: str
    id: str
    rest: list[str]


def find(text: str, read: Read) -> User:
    """Read ``USER[:GROUP]``, each a name or a number, as docker does: an unknown number is fine.

    ``read`` returns a file's text, empty where there is none. Raises :class:`SettingsError` for an
    unknown name, and for a number over :data:`HIGHEST`, whether it was given or stands in the
    files.
    """
    name, _, group = text.partition(":")
    row = _find(name, _rows(read, _USERS_FILE, 3), "user", text, _USERS_FILE)
    uid = _number(row.id if row else name, "user", text)
    gid = _number(row.rest[0], "user", text) if row else 0
    home = row.rest[2] if row else "/"
    known = _rows(read, _GROUPS_FILE, 1)
    if group:
        return User(uid, _group(group, known, "user", text), (), home)
    more = {_number(one.id, "user", text) for one in known if row and row.name in _members(one)}
    return User(uid, gid, tuple(sorted(more)), home)


def find_group(text: str, read: Read) -> int:
    """Return the GID of a group by its name or number.

    Raises :class:`SettingsError` for an unknown name, and for a number over :data:`HIGHEST`.
    """
    return _group(text, _rows(read, _GROUPS_FILE, 1), "group", text)


def _group(text: str, known: list[_Row], key: str, asked: str) -> int:
    row = _find(text, known, key, asked, _GROUPS_FILE)
    return _number(row.id if row else text, key, asked)


def _find(text: str, known: list[_Row], key: str, asked: str, path: str) -> _Row | None:
    """Return the first row with this name or number; None for a number without one."""
    found = next((row for row in known if text in (row.name, row.id)), None)
    if found is None and not _DIGITS.fullmatch(text):
        raise SettingsError(
            key, asked, f"a number, or a name of the container's {path}, which has no {text!r}"
        )
    return found


def _number(digits: str, key: str, asked: str) -> int:
    significant = digits.lstrip("0") or "0"
    if len(significant) > len(str(HIGHEST)) or int(significant) > HIGHEST:
        accepted = f"UIDs and GIDs from 0 to {HIGHEST}; this one is {significant[:40]}"
        raise SettingsError(key, asked, accepted)
    return int(significant)


def _members(group: _Row) -> list[str]:
    return [name.strip() for name in group.rest[0].split(",")]


def _rows(read: Read, path: str, least: int) -> list[_Row]:
    """Return the rows that the C library would read too, with at least so many fields after the
    number.

    As in glibc (nss_files), nothing but a newline ends a row, blanks before it do not count, ``#``
    begins a comment, and a row that cannot be read is none. A row with a sign or a blank in a
    number is none here, while glibc gives it a meaning.
    """
    numbers = (2, 3) if path == _USERS_FILE else (2,)
    rows = [line.lstrip(" \t").split(":") for line in read(path).split("\n")]
    return [
        _Row(row[0], row[2], row[3:])
        for row in rows
        if len(row) >= 3 + least
        and row[0]
        and not row[0].startswith("#")
        and all(_DIGITS.fullmatch(row[at]) for at in numbers)
    ]
