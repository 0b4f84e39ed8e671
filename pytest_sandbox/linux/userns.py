"""User namespaces for unprivileged users, in which they can build containers.

The user keeps its own UID and GID. The other IDs from 0 on are mapped to the user's subordinate
ranges (subuid(5)), if it has some and newuidmap(1) is installed. Without them no other ID is
mapped: files of others belong to ``nobody``, and no process can change its user.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
import warnings
from typing import TYPE_CHECKING, NoReturn

from pytest_sandbox.linux import capabilities, process, sysctl
from pytest_sandbox.linux import syscall as sc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "Extent",
    "builder_map",
    "call_with_capabilities",
    "has_capabilities",
    "has_id",
    "is_initial",
    "map_single_id",
    "missing_capabilities",
    "read_map",
    "reexec_in_user_namespace",
    "root_map",
    "subordinate_ranges",
    "unshare_user_namespace",
]

#: The number of IDs in a container: distributions hand out ranges of 65536.
_IDS = 1 << 16
#: The capabilities needed to create namespaces and mounts, to configure the loopback device, to
#: join the namespaces of a process that is not dumpable, and to change users.
_REQUIRED = (
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
#: How long to wait for a place below user.max_user_namespaces, in seconds. The kernel counts a
#: namespace until a worker has freed it, up to 1.5 s after its last process has ended (measured).
_PATIENCE = 5.0
_INITIAL = 0xEFFFFFFD  # PROC_USER_INIT_INO, <linux/proc_ns.h>

#: A line of /proc/PID/uid_map: the first ID inside, the first ID outside, and the count.
Extent = tuple[int, int, int]


def has_capabilities() -> bool:
    """Return whether the calling process can create containers without a new user namespace."""
    return not missing_capabilities()


def missing_capabilities() -> tuple[str, ...]:
    """Return the names of the required capabilities that the calling process does not have."""
    effective = sc.getcaps()[0]
    return tuple(f"CAP_{name}" for name in _REQUIRED if not effective & capabilities.bit(name))


def builder_map(own: int, ranges: Iterable[tuple[int, int]]) -> list[Extent]:
    """Return the map of ``own`` to itself, and of the other IDs from 0 on to ``ranges``.

    Each range is ``(first, count)``.
    """
    found: list[Extent] = []
    inside = 0
    for start, size in ranges:
        first, count = start, size
        while count and inside < _IDS:
            if inside == own:
                inside += 1
            room = (min(own, _IDS) if inside < own else _IDS) - inside
            used = min(count, room)
            found.append((inside, first, used))
            inside, first, count = inside + used, first + used, count - used
    return sorted([*found, (own, own, 1)])


def root_map(parent: Iterable[Extent], own: int) -> list[Extent]:
    """Return the map of a child of a namespace with the map ``parent`` that makes ``own`` root.

    The IDs below ``own`` move up by one.
    """
    found: list[Extent] = [(0, own, 1)]
    for first, _outside, count in parent:
        if first == own:
            continue
        found.append((first + 1 if first < own else first, first, count))
    return sorted(found)


def subordinate_ranges(
    path: str, text: str | None = None, uid: int | None = None
) -> list[tuple[int, int]]:
    """Return this user's lines of ``/etc/subuid`` or ``/etc/subgid`` as ``(first, count)``.

    The default of ``text`` is the content of ``path``, that of ``uid`` the effective UID.
    """
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
    """Return whether the calling process is in the initial user namespace.

    Only there do capabilities apply to the whole machine.
    """
    return os.stat("/proc/self/ns/user").st_ino == _INITIAL


def has_id(kind: str, number: int) -> bool:
    """Return whether a ``"uid"`` or ``"gid"`` is mapped in the caller's user namespace."""
    return any(first <= number < first + count for first, _outside, count in read_map(kind))


def read_map(kind: str, pid: int | None = None) -> list[Extent]:
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


def call_with_capabilities(func: Callable[[], object]) -> None:
    """Call a function in a forked process that has all capabilities over this user's IDs.

    It can change files of containers that belong to one of the user's subordinate IDs. Raises
    OSError if that is not possible on this host, or if the function fails.
    """
    with warnings.catch_warnings():
        # Python warns of a fork with several threads; this one ends with os._exit().
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        if process.await_exit(pid, None, None) not in {0, None}:
            raise OSError(errno.EPERM, "the operation failed in a user namespace of its own")
        return
    try:
        _enter_user_namespace()
        func()
        os._exit(0)
    finally:
        os._exit(1)


def reexec_in_user_namespace() -> NoReturn:
    """Move the calling single-threaded process into a new user namespace and execute it again.

    It has all capabilities there. execve(2) makes the namespace the owner of the process's memory;
    only then may the user outside join the namespaces that it creates (ptrace(2), "Ptrace access
    mode checking"). Raises OSError if user namespaces are not allowed.
    """
    _enter_user_namespace()
    _raise_ambient_capabilities()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def unshare_user_namespace() -> None:
    """Move the calling single-threaded process into a new user namespace, without mapped IDs.

    At the limit on user namespaces (ENOSPC) it waits for those that the kernel is about to free.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return sc.unshare(sc.CLONE_NEWUSER)
        except OSError as error:
            if error.errno != errno.ENOSPC or time.monotonic() > deadline or not _may_have_any():
                raise
        time.sleep(0.01)


def _may_have_any() -> bool:
    return sysctl.value("user.max_user_namespaces") != "0"


def _enter_user_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    helper = _Helper()
    unshare_user_namespace()
    if not helper.map():
        map_single_id(uid, gid)
    # AppArmor may allow the namespace and deny its capabilities: then this call fails.
    sc.unshare(sc.CLONE_NEWUTS)


def map_single_id(uid: int, gid: int, *, rooted: bool = False) -> None:
    """Map the caller's ``uid`` and ``gid`` outside to themselves, or to 0, and no other IDs.

    That is allowed without privileges (user_namespaces(7), "Defining user and group ID mappings").
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


def _raise_ambient_capabilities() -> None:
    """Raise all ambient capabilities, which a user other than root keeps through execve(2)."""
    _effective, permitted, _inheritable = sc.getcaps()
    sc.capset(permitted, permitted, permitted)
    for number in range(permitted.bit_length()):
        if permitted >> number & 1:
            sc.prctl(sc.PR_CAP_AMBIENT, sc.PR_CAP_AMBIENT_RAISE, number)


class _Helper:
    """A forked process that stays outside and maps subordinate IDs with newuidmap(1).

    It is not forked if there are no ranges, or newuidmap(1) or newgidmap(1) is not installed.
    """

    def __init__(self) -> None:
        self._pid = -1
        maps = [(program, own, subordinate_ranges(path)) for program, own, path in _programs()]
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
                if _run(program, caller, builder_map(own, ranges))
            ]
            os._exit(bool(failed))
        finally:
            os._exit(1)

    def map(self) -> bool:
        """Map the IDs; return whether that was done. If not, the caller maps its own ID."""
        if self._pid < 0:
            return False
        os.close(self._writer)
        _pid, status = os.waitpid(self._pid, 0)
        return status == 0


def _programs() -> list[tuple[str, int, str]]:
    return [("newuidmap", os.geteuid(), "/etc/subuid"), ("newgidmap", os.getegid(), "/etc/subgid")]


def _run(program: str, pid: int, extents: list[Extent]) -> int:
    numbers = [str(number) for extent in extents for number in extent]
    return subprocess.run(
        [program, str(pid), *numbers], check=False, stdin=subprocess.DEVNULL, capture_output=True
    ).returncode
