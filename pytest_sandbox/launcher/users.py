"""Users and groups by the files of the root that is in force: the C library would load modules from an image to find them (CVE-2019-14271)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["User", "find"]


@dataclass(frozen=True, slots=True)
class User:
    """Who a process is."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def find(text: str) -> User:
    """Read ``USER[:GROUP]``, each a name or a number, as docker does: an unknown number is fine, an unknown name a :class:`LookupError`."""
    name, _, group = text.partition(":")
    entry = next((fields for fields in _lines("/etc/passwd", 7) if name in (fields[0], fields[2])), None)
    if entry is None and not name.isdigit():
        raise LookupError(f"user={text!r}: there is no user {name!r} in the container's /etc/passwd; use a number, or a name that is there")
    uid, gid = (int(entry[2]), int(entry[3])) if entry else (int(name), 0)
    home = entry[5] if entry else "/"
    known = _lines("/etc/group", 4)
    if group:
        found = next((fields for fields in known if group in (fields[0], fields[2])), None)
        if found is None and not group.isdigit():
            raise LookupError(
                f"user={text!r}: there is no group {group!r} in the container's /etc/group; use a number, or a name that is there"
            )
        return User(uid, int(found[2]) if found else int(group), (), home)
    more = {int(fields[2]) for fields in known if entry and entry[0] in fields[3].split(",")}
    return User(uid, gid, tuple(sorted(more)), home)


def _lines(path: str, count: int) -> list[list[str]]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            rows = [line.rstrip("\n").split(":") for line in file]
    except OSError:
        return []
    return [row for row in rows if len(row) == count]
