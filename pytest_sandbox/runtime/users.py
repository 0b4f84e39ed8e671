"""Users and groups of a container, looked up in its own passwd(5) and group(5).

The files are read as data: the C library would load name service modules from the image
(CVE-2019-14271).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from pytest_sandbox.errors import SettingsError

__all__ = ["HIGHEST", "User", "find", "find_group"]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all

Read = Callable[[str], str]

#: The highest UID and GID, as in docker. The kernel would cut a longer one to 32 bits, and
#: 4294967295 means "unchanged" to setresuid(2): either could leave a payload root.
HIGHEST = 2147483647
# str.isdigit() also accepts the digits of other scripts, and "²".
_DIGITS = re.compile("[0-9]+")
_USERS_FILE = "/etc/passwd"
_GROUPS_FILE = "/etc/group"


@dataclass(frozen=True, slots=True)
class User:
    """The credentials of a process, and its user's home directory."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


class _Row(NamedTuple):
    """A line of passwd(5) or group(5): ``id`` is the UID or GID, ``rest`` the fields after it."""

    name: str
    id: str
    rest: list[str]


def find(text: str, read: Read) -> User:
    """Return the user for ``USER[:GROUP]``, each a name or an ID, as in docker.

    An ID need not be in the files. ``read`` returns the text of a file, empty if it is missing.
    Raises :class:`SettingsError` for an unknown name, and for an ID over :data:`HIGHEST`, given or
    in the files.
    """
    name, _, group = text.partition(":")
    row = _find(name, _rows(read, _USERS_FILE, 3), "user", text, _USERS_FILE)
    uid = _parse_id(row.id if row else name, "user", text)
    gid = _parse_id(row.rest[0], "user", text) if row else 0
    home = row.rest[2] if row else "/"
    known = _rows(read, _GROUPS_FILE, 1)
    if group:
        return User(uid, _group(group, known, "user", text), (), home)
    more = {_parse_id(one.id, "user", text) for one in known if row and row.name in _members(one)}
    return User(uid, gid, tuple(sorted(more)), home)


def find_group(text: str, read: Read) -> int:
    """Return the GID of a group, given by its name or GID.

    Raises :class:`SettingsError` for an unknown name, and for a GID over :data:`HIGHEST`.
    """
    return _group(text, _rows(read, _GROUPS_FILE, 1), "group", text)


def _group(text: str, known: list[_Row], key: str, asked: str) -> int:
    row = _find(text, known, key, asked, _GROUPS_FILE)
    return _parse_id(row.id if row else text, key, asked)


def _find(text: str, known: list[_Row], key: str, asked: str, path: str) -> _Row | None:
    """Return the first row with this name or ID; None for an ID without a row."""
    found = next((row for row in known if text in (row.name, row.id)), None)
    if found is None and not _DIGITS.fullmatch(text):
        raise SettingsError(
            key, asked, f"an ID, or a name in the container's {path}, which has no {text!r}"
        )
    return found


def _parse_id(digits: str, key: str, asked: str) -> int:
    significant = digits.lstrip("0") or "0"
    if len(significant) > len(str(HIGHEST)) or int(significant) > HIGHEST:
        accepted = f"UIDs and GIDs from 0 to {HIGHEST}; this one is {significant[:40]}"
        raise SettingsError(key, asked, accepted)
    return int(significant)


def _members(group: _Row) -> list[str]:
    return [name.strip() for name in group.rest[0].split(",")]


def _rows(read: Read, path: str, least: int) -> list[_Row]:
    """Return the valid rows of a file, with at least ``least`` fields after the ID.

    As in glibc (nss/nss_files), only a newline ends a row, blanks before it are skipped, ``#``
    begins a comment, and an invalid row is skipped. Stricter than glibc, an ID with a sign or a
    blank makes a row invalid.
    """
    ids = (2, 3) if path == _USERS_FILE else (2,)
    rows = [line.lstrip(" \t").split(":") for line in read(path).split("\n")]
    return [
        _Row(row[0], row[2], row[3:])
        for row in rows
        if len(row) >= 3 + least
        and row[0]
        and not row[0].startswith("#")
        and all(_DIGITS.fullmatch(row[at]) for at in ids)
    ]
