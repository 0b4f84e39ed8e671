"""User namespaces for who is not root: one in which the calling process may build containers, with
every number as it is outside.

Inside, the user keeps its own number; the numbers of its subordinate ranges (subuid(5)), where it
has some and newuidmap(1) is there, take the places of all others in order. Whoever has neither is
alone in there: files of others are nobody's, and no process can become another.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, NoReturn

from pytest_sandbox.linux import capabilities, process
from pytest_sandbox.linux import syscall as sc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "Extent",
    "become_builder",
    "extents",
    "has_id",
    "has_power",
    "is_initial",
    "lacking_power",
    "map_alone",
    "mapped",
    "own_ranges",
    "rooted",
    "with_power",
]

#: The count of ids that a container's files may need: 0 to 65535, which is what distributions hand
#: out.
_USUAL = 1 << 16
#: What it takes to make namespaces and mounts, to bring up a loopback, to enter where an init is
#: that cannot be traced, and to become others.
_POWER = (
    "SYS_ADMIN",
    "NET_ADMIN",
    "SYS_PTRACE",
    "SYS_CHROOT",
    "SETPCAP",
    "SETUID",
    "SETGID",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
)
_INITIAL = 0xEFFFFFFD  # PROC_USER_INIT_INO, <linux/proc_ns.h>

#: ``count`` ids from ``inside`` on are those from ``outside`` on (a line of /proc/PID/uid_map).
Extent = tuple[int, int, int]


def has_power() -> bool:
    """Whether the calling process may make containers as it is, as root or as that of its own user
    namespace, by all capabilities that it takes.
    """
    return not lacking_power()


def lacking_power() -> tuple[str, ...]:
    """Return the capabilities that it takes to make containers and the calling process does not
    have, the telling one first.
    """
    held = sc.getcaps()[0]
    return tuple(f"CAP_{name}" for name in _POWER if not held & capabilities.bit(name))


def extents(own: int, ranges: Iterable[tuple[int, int]]) -> list[Extent]:
    """Return the map that keeps ``own`` where it is and fills the places around it, from 0 on, with
    ``ranges`` of ``(first, count)``.
    """
    found: list[Extent] = []
    place = 0
    for start, size in ranges:
        first, count = start, size
        while count and place < _USUAL:
            if place == own:
                place += 1
            room = (min(own, _USUAL) if place < own else _USUAL) - place
            used = min(count, room)
            found.append((place, first, used))
            place, first, count = place + used, first + used, count - used
    return sorted([*found, (own, own, 1)])


def rooted(inside: Iterable[Extent], own: int) -> list[Extent]:
    """Return the map of a namespace below one with the map ``inside`` where ``own`` is root, and
    all before it are one further.
    """
    found: list[Extent] = [(0, own, 1)]
    for first, _outside, count in inside:
        if first == own:
            continue
        found.append((first + 1 if first < own else first, first, count))
    return sorted(found)


def own_ranges(path: str, text: str | None = None, uid: int | None = None) -> list[tuple[int, int]]:
    """Return this user's lines of ``/etc/subuid`` or ``/etc/subgid`` as ``(first, count)``."""
    names = _names(os.geteuid() if uid is None else uid)
    if text is None:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read()
        except OSError:
            return []
    lines = (line.strip().split(":") for line in text.split("\n"))
    return [
        (int(line[1]), int(line[2]))
        for line in lines
        if len(line) == 3 and line[0] in names and line[1].isdigit() and line[2].isdigit()
    ]


def is_initial() -> bool:
    """Whether the calling process is in the first user namespace, where alone power is over the
    whole machine.
    """
    return os.stat("/proc/self/ns/user").st_ino == _INITIAL


def has_id(kind: str, number: int) -> bool:
    """Whether a ``"uid"`` or ``"gid"`` has a meaning in the calling process's user namespace."""
    return any(first <= number < first + count for first, _outside, count in mapped(kind))


def mapped(kind: str, pid: int | None = None) -> list[Extent]:
    """Return the map of a process's user namespace, by default the caller's, for ``"uid"`` or
    ``"gid"``.
    """
    with open(f"/proc/{pid or 'self'}/{kind}_map", encoding="ascii") as file:
        return [
            (int(first), int(outside), int(count)) for first, outside, count in map(str.split, file)
        ]


def _names(uid: int) -> set[str]:
    import pwd

    try:
        return {str(uid), pwd.getpwuid(uid).pw_name}
    except KeyError:
        return {str(uid)}


def with_power(func: Callable[[], object]) -> None:
    """Call a function in a fork that has all rights over what containers of this user wrote,
    whichever of its numbers has it now.

    Raises :class:`OSError` where this host lets it have none, or where the function fails.
    """
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # the fork ends in os._exit, so it needs no other thread
        pid = os.fork()
    if pid:
        if process.await_exit(pid, None, None) not in {0, None}:
            raise OSError(errno.EPERM, "a user namespace could not be made, or has not helped")
        return
    try:
        _enter_own()
        func()
        os._exit(0)
    finally:
        os._exit(1)


def become_builder() -> NoReturn:
    """Move the calling, single-threaded process into a user namespace of its own and start its
    program anew, with all rights in there.

    The new start is what makes the namespace the owner of the process's memory: only then may the
    user outside enter what it builds (ptrace(2), "Ptrace access mode checking"). Raises
    :class:`OSError` where this host does not let it.
    """
    _enter_own()
    _keep_rights()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _enter_own() -> None:
    uid, gid = os.geteuid(), os.getegid()
    helper = _Helper()
    sc.unshare(sc.CLONE_NEWUSER)
    if not helper.mapped():
        map_alone(uid, gid)
    sc.unshare(
        sc.CLONE_NEWUTS
    )  # AppArmor may let the namespace be made, and take its rights: here it says so


def map_alone(uid: int, gid: int, *, rooted: bool = False) -> None:
    """Give the caller's new user namespace one user and group: ``uid`` and ``gid``, its numbers
    outside, under the same numbers, or as root.

    It is what a process may do without privileges (user_namespaces(7), "Defining user and group ID
    mappings").
    """
    inside = (0, 0) if rooted else (uid, gid)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside[0]} {uid} 1"),
        ("gid_map", f"{inside[1]} {gid} 1"),
    ):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def _keep_rights() -> None:
    """Have the capabilities pass through the exec of a program by a user that is not root: the
    ambient set (capabilities(7)).
    """
    _effective, permitted, _inheritable = sc.getcaps()
    sc.capset(permitted, permitted, permitted)
    for number in range(permitted.bit_length()):
        if permitted >> number & 1:
            sc.prctl(sc.PR_CAP_AMBIENT, sc.PR_CAP_AMBIENT_RAISE, number)


class _Helper:
    """A fork that stays outside and lets newuidmap(1) and newgidmap(1) map this process, where
    there is something to map.
    """

    def __init__(self) -> None:
        self._pid = -1
        maps = [(program, own, own_ranges(path)) for program, own, path in _programs()]
        if not all(shutil.which(program) and ranges for program, _own, ranges in maps):
            return
        caller = os.getpid()
        reader, self._writer = os.pipe()
        self._pid = os.fork()
        if self._pid:
            os.close(reader)
            return
        try:
            os.close(self._writer)
            os.read(reader, 1)
            failed = [
                program
                for program, own, ranges in maps
                if _run(program, caller, extents(own, ranges))
            ]
            os._exit(bool(failed))
        finally:
            os._exit(1)

    def mapped(self) -> bool:
        """Let it work, and tell whether all is mapped; where nothing is, the caller maps itself."""
        if self._pid < 0:
            return False
        os.close(self._writer)
        _pid, status = os.waitpid(self._pid, 0)
        return status == 0


def _programs() -> list[tuple[str, int, str]]:
    return [("newuidmap", os.geteuid(), "/etc/subuid"), ("newgidmap", os.getegid(), "/etc/subgid")]


def _run(program: str, pid: int, wanted: list[Extent]) -> int:
    numbers = [str(number) for extent in wanted for number in extent]
    return subprocess.run(
        [program, str(pid), *numbers], check=False, stdin=subprocess.DEVNULL, capture_output=True
    ).returncode
