"""The mounts of the host, and the file systems that every container gets: /proc, /sys and /dev.

A container's root is assembled in a staging directory in its own mount namespace, and becomes the
root with pivot_root(2).
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
    from pytest_sandbox.linux.syscall_batch import Result, SyscallBatch

__all__ = [
    "BOUND",
    "COPIED",
    "COVERED",
    "MOUNT_FILE_SYSTEMS",
    "MOUNT_OWN",
    "MOUNT_ROOT",
    "OWN",
    "PSEUDO",
    "READ_ONLY",
    "STAGE",
    "WRITABLE",
    "HostMount",
    "add_attributes",
    "add_bind",
    "add_cover",
    "add_dev",
    "add_pivot_root",
    "add_private",
    "add_proc",
    "add_remount",
    "add_sys",
    "has_changed",
    "list_mounts",
    "make_private",
    "real_mounts",
    "tmpfs_options",
    "watch",
]

#: File system types that show kernel state instead of a user's files: a container has its own
#: instance, or none.
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
#: The staging directory in a container's mount namespace: it exists on every Linux system, and what
#: is mounted on it there is not needed.
STAGE = "/proc"
#: The steps that mount a container's file systems, as errors name them.
MOUNT_ROOT = "mount root"
MOUNT_FILE_SYSTEMS = "mount file systems"
MOUNT_OWN = "mount /dev, /proc and /sys"
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
#: Pseudo-terminals of one container; all containers share kernel.pty.max minus kernel.pty.reserve,
#: 3072 by default.
MAX_TERMINALS = 256
_MIN_INODES = 1024
_BYTES_PER_INODE = 4096
_NO_EXEC = sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC

#: Paths that docker hides, and those that it makes read-only (moby, ``oci/defaults.go``). Physical
#: pages (kpage*), which docker shows to root, are hidden too.
MASKED_PATHS = (
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
READ_ONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

#: How a container shows a mount of the host: through an overlay, through one without a writable
#: layer, as a read-only bind mount (if it cannot be a lower layer), as a copy (a file), or covered
#: by an empty directory.
WRITABLE, READ_ONLY, BOUND, COPIED, COVERED = "writable", "read-only", "bound", "copied", "covered"


@dataclass(frozen=True, slots=True)
class HostMount:
    """A mount of the host, and how containers show it.

    ``source`` is the path of its content for containers; empty if it is ``point`` itself.
    """

    point: str
    fstype: str
    flags: int
    source: str = ""
    is_directory: bool = True
    #: Whether the file system is read-only, not only this mount of it.
    is_immutable: bool = False
    #: Whether ``point`` is a mount point, and not a directory in another mount.
    is_mount: bool = True
    #: How a container shows it: WRITABLE, READ_ONLY, ...
    shown: str = WRITABLE

    @property
    def lower(self) -> str:
        """The directory that is the lower layer in a container."""
        return self.source or self.point


def list_mounts(data: bytes | None = None) -> list[HostMount]:
    """Return the mounts of a mount namespace in the order of mounting.

    ``data`` is the content of a mountinfo file, by default that of the calling process.
    """
    return [
        HostMount(
            entry.point,
            entry.fstype,
            sum(_FLAGS.get(option, 0) for option in entry.options),
            is_immutable="ro" in entry.super_options,
        )
        for entry in mountinfo.parse(mountinfo.read() if data is None else data)
    ]


def watch() -> int:
    """Return a descriptor that polls as POLLPRI after a mount or unmount (proc_pid_mounts(5))."""
    return os.open(mountinfo.PATH, os.O_RDONLY | os.O_CLOEXEC)


def has_changed(fd: int) -> bool:
    """Return whether a mount has changed since :func:`watch` or the last call."""
    poll = select.poll()
    poll.register(fd, select.POLLPRI)
    return bool(poll.poll(0))


def real_mounts(entries: list[HostMount]) -> list[HostMount]:
    """Return the mounts below the root with a user's files, parents first.

    For a mount point with several mounts, it is the topmost one.
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


def tmpfs_options(size: int) -> bytes:
    """Return the mount options that limit a tmpfs to ``size`` bytes (tmpfs(5)).

    Inodes and extended attributes are kernel memory that ``size=`` does not count. ``nr_inodes=``
    limits both: since Linux 6.6, which added user attributes, an attribute counts as inodes of
    1 KiB. So they take at most a quarter of the size in addition.
    """
    return b"size=%d,nr_inodes=%d" % (size, max(_MIN_INODES, size // _BYTES_PER_INODE))


def add_private(batch: SyscallBatch, step: str) -> None:
    """Append what :func:`make_private` does."""
    batch.mount(step, None, b"/", None, sc.MS_REC | sc.MS_PRIVATE)


def make_private() -> None:
    """Stop the propagation of mounts between this mount namespace and the host."""
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)


def add_proc(batch: SyscallBatch, step: str, root: str, *, protected: bool) -> None:
    """Append mounting /proc for the PID namespace of the process that runs the batch.

    ``protected`` hides or makes read-only what shows or controls the whole machine.
    """
    batch.mount(step, b"proc", os.fsencode(f"{root}/proc"), b"proc", _NO_EXEC)
    if protected:
        _protect(batch, step, root, "/proc/")


def add_sys(
    batch: SyscallBatch, step: str, root: str, *, protected: bool, own: bool = True
) -> None:
    """Append mounting /sys for the network namespace of the process that runs the batch.

    It is read-only if ``protected``. Without an ``own`` network namespace the kernel denies a new
    sysfs mount (it needs CAP_SYS_ADMIN in the user namespace of the network), so a read-only copy
    of the host's mount is used.
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
        add_attributes(batch, step, fd, sc.MOUNT_ATTR_RDONLY)
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
def _existing(paths: tuple[str, ...]) -> dict[str, bool]:
    """Return those of the paths that exist, and whether each is a directory.

    They are the same in every mount of /proc and /sys, so the result is cached.
    """
    return {path: os.path.isdir(path) for path in paths if os.path.exists(path)}


def _protect(batch: SyscallBatch, step: str, root: str, below: str) -> None:
    """Append making paths read-only, and hiding others.

    A directory is covered by an empty one, a file by /dev/null.
    """
    read_only = [path for path in _existing(READ_ONLY_PATHS) if path.startswith(below)]
    for path in read_only:
        add_bind(batch, step, root + path, root + path)
    if read_only:
        _add_read_only_children(batch, step, f"{root}{below.rstrip('/')}", _NO_EXEC)
    for path, is_directory in _existing(MASKED_PATHS).items():
        if path.startswith(below) and is_directory:
            add_cover(batch, step, root + path)
        elif path.startswith(below):
            add_bind(batch, step, f"{root}/dev/null", root + path)


def add_cover(batch: SyscallBatch, step: str, target: str) -> None:
    """Append covering a directory with an empty one that cannot be written."""
    batch.mount(
        step, b"tmpfs", os.fsencode(target), b"tmpfs", _NO_EXEC | sc.MS_RDONLY, b"size=0,mode=555"
    )


def add_bind(batch: SyscallBatch, step: str, source: str, target: str, *, flags: int = 0) -> None:
    """Append a bind mount; ``flags`` (MS_RDONLY, ...) are set by a second mount(2)."""
    batch.mount(step, os.fsencode(source), os.fsencode(target), None, sc.MS_BIND)
    if flags:
        add_remount(batch, step, target, flags)


def add_remount(batch: SyscallBatch, step: str, target: str, flags: int) -> None:
    """Append replacing the flags of the mount at ``target``."""
    batch.mount(step, None, os.fsencode(target), None, sc.MS_BIND | sc.MS_REMOUNT | flags)


def add_attributes(batch: SyscallBatch, step: str, fd: Result, attributes: int) -> None:
    """Append setting attributes of a detached mount and of all below it (mount_setattr(2))."""
    packed = sc.mount_attributes(attributes)
    flags = sc.AT_EMPTY_PATH | sc.AT_RECURSIVE
    batch.add(step, "mount_setattr", fd, b"", flags, packed, len(packed))


def _add_read_only_children(batch: SyscallBatch, step: str, target: str, flags: int) -> None:
    """Append making all mounts below ``target`` read-only, but not ``target`` itself.

    mount_setattr(2) with AT_RECURSIVE includes ``target``, so its own ``flags`` are set again.
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
    """Append mounting /dev: device nodes, /dev/pts, /dev/shm of ``shm_size`` bytes, /dev/mqueue.

    The nodes are bind mounts of the host's. /dev itself is mounted ``nodev``, so that a node
    created inside (mknod(2)) cannot be opened. ``tty_group`` gives terminals to GID 5, which is
    ``tty`` on every distribution; it must have a meaning in the user namespace.
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
    # A read-only mount protects mode, owner and attributes of the host's nodes; devices can be
    # written nevertheless.
    _add_read_only_children(batch, step, dev, sc.MS_NOSUID | sc.MS_NODEV)
    for name, target in _DEVICE_LINKS.items():
        batch.add(step, "symlinkat", target.encode(), -1, os.fsencode(f"{dev}/{name}"))
    for name, fstype, flags, data in (
        ("pts", b"devpts", sc.MS_NOSUID | sc.MS_NOEXEC, terminals),
        ("shm", b"tmpfs", _NO_EXEC, b"mode=1777," + tmpfs_options(shm_size)),
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


def add_pivot_root(batch: SyscallBatch, step: str, root: str) -> None:
    """Append making ``root`` the root of the mount namespace and unmounting the old root.

    The sequence is that of pivot_root(2), "pivot_root(".", ".")".
    """
    batch.add(step, "chdir", os.fsencode(root))
    batch.add(step, "pivot_root", b".", b".")
    batch.add(step, "umount2", b".", sc.MNT_DETACH)
    batch.add(step, "chdir", b"/")
