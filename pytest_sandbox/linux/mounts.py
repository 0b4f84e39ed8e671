"""Mounts: what the host has mounted, and the file systems of its own that every container gets.

Everything is assembled below a staging directory in a mount namespace of its own and becomes the
root by pivot_root(2) at the end.
"""

from __future__ import annotations

import os
import select
import stat
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from pytest_sandbox.linux import mountinfo
from pytest_sandbox.linux import syscall as sc

if TYPE_CHECKING:
    from pytest_sandbox.linux.syscall_batch import SyscallBatch

__all__ = [
    "BOUND",
    "COPIED",
    "COVERED",
    "OWN",
    "PSEUDO",
    "READ_ONLY",
    "STAGE",
    "WRITABLE",
    "Mounted",
    "add_become_root",
    "add_bind",
    "add_cover",
    "add_dev",
    "add_private",
    "add_proc",
    "add_remount",
    "add_sys",
    "has_changed",
    "limited",
    "make_private",
    "mounted",
    "real_mounts",
    "watch",
]

#: File systems that show the kernel's state, not files of the user's: a container gets its own, or
#: none.
PSEUDO = frozenset(
    [
        "autofs",
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "debugfs",
        "devpts",
        "devtmpfs",
        "efivarfs",
        "fusectl",
        "hugetlbfs",
        "mqueue",
        "nsfs",
        "proc",
        "pstore",
        "ramfs",
        "rpc_pipefs",
        "securityfs",
        "selinuxfs",
        "smackfs",
        "sysfs",
        "tracefs",
    ]
)
#: Where a container's root is put together, in a mount namespace of its own: a directory that every
#: Linux has and that init needs no more.
STAGE = "/proc"
OWN = ("/proc", "/sys", "/dev")
_FLAGS = {"ro": sc.MS_RDONLY, "nosuid": sc.MS_NOSUID, "nodev": sc.MS_NODEV, "noexec": sc.MS_NOEXEC}
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
#: Pseudo-terminals of one container. All containers share what kernel.pty.max leaves beside the
#: host's reserve (3072).
MAX_TERMINALS = 256
_LEAST_INODES = 1024
_BYTES_PER_INODE = 4096
_NO_EXEC = sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC

#: What docker hides of /proc and /sys, and what it makes read-only (moby, ``oci/defaults.go``).
#: Hidden are the states of the machine's
#: pages (kpage*), too, which docker shows to root.
MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
STEERING = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


#: How a container shows what the host has mounted: below an overlay, below one without a writable
#: layer, bound read-only (what
#: cannot be below an overlay), copied (a single file), covered by an empty directory.
WRITABLE, READ_ONLY, BOUND, COPIED, COVERED = "writable", "read-only", "bound", "copied", "covered"


@dataclass(frozen=True, slots=True)
class Mounted:
    """A mount of this mount namespace, as containers are laid over it.

    ``source`` is where a container finds what is at ``point``; empty where that is the point
    itself.
    """

    point: str
    fstype: str
    flags: int
    source: str = ""
    is_directory: bool = True
    #: Whether nobody can write to the file system, by any mount of it.
    is_immutable: bool = False
    #: Whether a mount is at the point, and not a directory of one above it.
    is_mount: bool = True
    #: How a container shows it.
    shown: str = WRITABLE

    @property
    def lower(self) -> str:
        """The directory below the container's writable layer."""
        return self.source or self.point


def mounted(data: bytes | None = None) -> list[Mounted]:
    """Return what is mounted in this mount namespace, in the order of mounting.

    ``data`` is the content of a mountinfo file, by default that of the calling process.
    """
    return [
        Mounted(
            entry.point,
            entry.fstype,
            sum(_FLAGS.get(option, 0) for option in entry.options),
            is_immutable="ro" in entry.super_options,
        )
        for entry in mountinfo.parse(mountinfo.read() if data is None else data)
    ]


def watch() -> int:
    """Return a descriptor on which poll(2) reports POLLPRI when something was mounted or unmounted
    in this mount namespace.
    """
    return os.open(mountinfo.PATH, os.O_RDONLY | os.O_CLOEXEC)


def has_changed(fd: int) -> bool:
    """Tell whether something was mounted or unmounted since :func:`watch` or the last call."""
    poll = select.poll()
    poll.register(fd, select.POLLPRI)
    return bool(poll.poll(0))


def real_mounts(entries: list[Mounted]) -> list[Mounted]:
    """Return the mounts below the root that hold a user's files, parents first, each point once
    (the topmost mount counts).
    """
    last = {entry.point: entry for entry in entries}
    kept = [
        entry
        for entry in last.values()
        if entry.point != "/"
        and entry.fstype not in PSEUDO
        and not any(_is_below(entry.point, own) for own in OWN)
    ]
    found = [
        replace(entry, is_directory=os.path.isdir(entry.point))
        for entry in kept
        if os.path.exists(entry.point)
    ]
    return sorted(found, key=lambda entry: entry.point)


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory + "/")


def limited(size: int) -> bytes:
    """Return the options of a tmpfs that may hold ``size`` bytes.

    Inodes and extended attributes are memory of the kernel's, outside of ``size=``. ``nr_inodes=``
    bounds both: since Linux 6.6 an attribute is counted in units of an inode (1 KiB), and before, a
    tmpfs has no user attributes. So they take a quarter at most.
    """
    return b"size=%d,nr_inodes=%d" % (size, max(_LEAST_INODES, size // _BYTES_PER_INODE))


def add_private(batch: SyscallBatch, step: str) -> None:
    """:func:`make_private` as a step of a batch."""
    batch.mount(step, None, b"/", None, sc.MS_REC | sc.MS_PRIVATE)


def make_private() -> None:
    """Keep what is mounted from here on out of the host, and what the host mounts out of here."""
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)


def add_proc(batch: SyscallBatch, step: str, root: str, *, protected: bool) -> None:
    """Mount a /proc of the calling process's PID namespace; ``protected`` masks what shows or
    steers the whole machine.
    """
    batch.mount(step, b"proc", os.fsencode(f"{root}/proc"), b"proc", _NO_EXEC)
    if protected:
        _protect(batch, step, root, "/proc/")


def add_sys(
    batch: SyscallBatch, step: str, root: str, *, protected: bool, own: bool = True
) -> None:
    """Mount a /sys of the calling process's network namespace, read-only where ``protected``.

    Where the network is not its ``own``, and nobody has power over it, the /sys that is there is
    shown read-only.
    """
    target = os.fsencode(f"{root}/sys")
    if own:
        batch.mount(step, b"sysfs", target, b"sysfs", _NO_EXEC | (sc.MS_RDONLY if protected else 0))
    else:
        fd = batch.add(
            step,
            "open_tree",
            -100,
            b"/sys",
            sc.OPEN_TREE_CLONE | sc.OPEN_TREE_CLOEXEC | sc.AT_RECURSIVE,
        )
        attributes = sc.mount_attributes(sc.MOUNT_ATTR_RDONLY)
        batch.add(
            step,
            "mount_setattr",
            fd,
            b"",
            sc.AT_EMPTY_PATH | sc.AT_RECURSIVE,
            attributes,
            len(attributes),
        )
        batch.add(step, "move_mount", fd, b"", -100, target, sc.MOVE_MOUNT_F_EMPTY_PATH)
        batch.close(step, fd)
    if protected:
        _protect(batch, step, root, "/sys/")


@cache
def _devices() -> tuple[str, ...]:
    """Return the devices that a container gets: of the usual ones, those that the host has.

    null is always among them, since masked files are bound to it.
    """
    return tuple(name for name in _DEVICES if name == "null" or os.path.exists(f"/dev/{name}"))


@cache
def _found(paths: tuple[str, ...]) -> dict[str, bool]:
    """Which of the kernel's files this one has, and whether it is a directory: every mount of /proc
    and /sys has the same.
    """
    return {path: os.path.isdir(path) for path in paths if os.path.exists(path)}


def _protect(batch: SyscallBatch, step: str, root: str, below: str) -> None:
    """Make read-only what steers; cover a directory that tells too much with an empty one, a file
    with /dev/null.
    """
    steering = [path for path in _found(STEERING) if path.startswith(below)]
    for path in steering:
        add_bind(batch, step, root + path, root + path)
    if steering:
        _make_mounts_below_read_only(batch, step, f"{root}{below.rstrip('/')}", _NO_EXEC)
    for path, is_directory in _found(MASKED).items():
        if path.startswith(below) and is_directory:
            add_cover(batch, step, root + path)
        elif path.startswith(below):
            add_bind(batch, step, f"{root}/dev/null", root + path)


def add_cover(batch: SyscallBatch, step: str, target: str) -> None:
    """Cover a directory with an empty one that stays empty."""
    batch.mount(
        step, b"tmpfs", os.fsencode(target), b"tmpfs", _NO_EXEC | sc.MS_RDONLY, b"size=0,mode=555"
    )


def add_bind(batch: SyscallBatch, step: str, source: str, target: str, *, flags: int = 0) -> None:
    """Make ``source`` visible at ``target`` too; ``flags`` (MS_RDONLY, ...) need a second
    mount(2).
    """
    batch.mount(step, os.fsencode(source), os.fsencode(target), None, sc.MS_BIND)
    if flags:
        add_remount(batch, step, target, flags)


def add_remount(batch: SyscallBatch, step: str, target: str, flags: int) -> None:
    """Give the mount at ``target`` these flags and no others."""
    batch.mount(step, None, os.fsencode(target), None, sc.MS_BIND | sc.MS_REMOUNT | flags)


def _make_mounts_below_read_only(batch: SyscallBatch, step: str, target: str, flags: int) -> None:
    """Make all mounts below the one at ``target`` read-only, and not that one, which has these
    ``flags``: two calls for all of them.
    """
    attributes = sc.mount_attributes(sc.MOUNT_ATTR_RDONLY)
    batch.add(
        step,
        "mount_setattr",
        -100,
        os.fsencode(target),
        sc.AT_RECURSIVE,
        attributes,
        len(attributes),
    )
    add_remount(batch, step, target, flags)


def add_dev(
    batch: SyscallBatch, step: str, root: str, shm_size: int, *, tty_group: bool = True
) -> None:
    """Mount a /dev of its own: the usual nodes, /dev/pts, /dev/shm of ``shm_size`` bytes,
    /dev/mqueue.

    The nodes are binds of the host's on a file system without devices, so that a node made inside
    (mknod(2)) is inert. Terminals belong to group 5, ``tty`` everywhere, where that number exists
    (``tty_group``).
    """
    dev = f"{root}/dev"
    terminals = b"newinstance,ptmxmode=0666,mode=0620,max=%d" % MAX_TERMINALS + (
        b",gid=5" if tty_group else b""
    )
    batch.mount(
        step,
        b"tmpfs",
        os.fsencode(dev),
        b"tmpfs",
        sc.MS_NOSUID | sc.MS_NODEV,
        b"mode=755,size=64k,nr_inodes=1k",
    )
    for name in _devices():
        batch.add(step, "mknodat", -1, os.fsencode(f"{dev}/{name}"), stat.S_IFREG | 0o666, 0)
        add_bind(batch, step, f"/dev/{name}", f"{dev}/{name}")
    # Mode, owner and attributes of the nodes are the host's: read-only, nobody changes them, and
    # devices are written to all the same.
    _make_mounts_below_read_only(batch, step, dev, sc.MS_NOSUID | sc.MS_NODEV)
    for name, target in _DEVICE_LINKS.items():
        batch.add(step, "symlinkat", target.encode(), -1, os.fsencode(f"{dev}/{name}"))
    for name, fstype, flags, data in (
        ("pts", b"devpts", sc.MS_NOSUID | sc.MS_NOEXEC, terminals),
        ("shm", b"tmpfs", _NO_EXEC, b"mode=1777," + limited(shm_size)),
        ("mqueue", b"mqueue", _NO_EXEC, None),
    ):
        batch.add(step, "mkdirat", -1, os.fsencode(f"{dev}/{name}"), 0o755)
        batch.mount(
            step,
            b"shm" if name == "shm" else fstype,
            os.fsencode(f"{dev}/{name}"),
            fstype,
            flags,
            data,
        )


def add_become_root(batch: SyscallBatch, step: str, root: str) -> None:
    """Make ``root`` the root of this mount namespace and let go of the old one, which no path
    reaches any more (pivot_root(2)).
    """
    batch.add(step, "chdir", os.fsencode(root))
    batch.add(step, "pivot_root", b".", b".")
    batch.add(step, "umount2", b".", sc.MNT_DETACH)
    batch.add(step, "chdir", b"/")
