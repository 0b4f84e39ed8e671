"""Mounts: what the host has mounted, and the file systems of its own that every container gets.

Everything is assembled below a staging folder in a mount namespace of its own and becomes the root by pivot_root(2) at the end.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from pytest_sandbox.linux import syscall as sc

__all__ = [
    "OWN",
    "PSEUDO",
    "Mounted",
    "become_root",
    "bind",
    "make_private",
    "mount_dev",
    "mount_proc",
    "mount_sys",
    "mounted",
    "real_mounts",
    "watch",
]

#: File systems that show the kernel's state, not files of the user's: a container gets its own, or none.
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
#: Where a container's root is put together, in a mount namespace of its own: a folder that every Linux has and that init needs no more.
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
_NO_EXEC = sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC

#: What docker hides of /proc and /sys, and what it makes read-only (moby, ``oci/defaults.go``).
MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of /proc/self/mountinfo (proc_pid_mountinfo(5)).

    ``source`` is where a container finds what is at ``point``; empty where that is the point itself.
    """

    point: str
    fstype: str
    flags: int
    source: str = ""

    @property
    def lower(self) -> str:
        """The folder below the container's writable layer."""
        return self.source or self.point


def mounted(text: str | None = None) -> list[Mounted]:
    """Return what is mounted in this mount namespace, in the order of mounting."""
    if text is None:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            text = file.read()
    return [_parsed(line) for line in text.splitlines()]


def watch() -> int:
    """Return a descriptor on which poll(2) reports POLLPRI when something was mounted or unmounted in this mount namespace."""
    return os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)


def _parsed(line: str) -> Mounted:
    front, _, back = line.partition(" - ")
    fields = front.split(" ")
    flags = sum(_FLAGS.get(option, 0) for option in fields[5].split(","))
    return Mounted(_unescaped(fields[4]), back.split(" ")[0], flags)


def _unescaped(path: str) -> str:
    """Undo the octal escapes that mountinfo writes for blank, tab, newline and backslash."""
    if "\\" not in path:
        return path
    for octal in ("040", "011", "012", "134"):
        path = path.replace("\\" + octal, chr(int(octal, 8)))
    return path


def real_mounts(entries: list[Mounted]) -> list[Mounted]:
    """Return the mounts below the root that hold a user's files, parents first, each point once (the topmost mount counts)."""
    last = {entry.point: entry for entry in entries}
    kept = [
        entry
        for entry in last.values()
        if entry.point != "/" and entry.fstype not in PSEUDO and not any(_is_below(entry.point, own) for own in OWN)
    ]
    return sorted((entry for entry in kept if os.path.exists(entry.point)), key=lambda entry: entry.point)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def make_private() -> None:
    """Keep what is mounted from here on out of the host, and what the host mounts out of here."""
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)


def bind(source: str, target: str, *, flags: int = 0, recursive: bool = False) -> None:
    """Make ``source`` visible at ``target`` too; ``flags`` (MS_RDONLY, ...) need a second mount(2)."""
    sc.mount(source, target, None, sc.MS_BIND | (sc.MS_REC if recursive else 0))
    if flags:
        sc.mount(None, target, None, sc.MS_BIND | sc.MS_REMOUNT | flags)


def mount_proc(root: str, *, protected: bool) -> None:
    """Mount a /proc of the calling process's PID namespace; ``protected`` masks what shows or steers the whole machine."""
    sc.mount("proc", f"{root}/proc", "proc", _NO_EXEC)
    if protected:
        _protect(root, "/proc")


def mount_sys(root: str, *, protected: bool) -> None:
    """Mount a /sys of the calling process's network namespace, read-only where ``protected``."""
    try:
        sc.mount("sysfs", f"{root}/sys", "sysfs", _NO_EXEC | (sc.MS_RDONLY if protected else 0))
    except PermissionError:  # the network is the host's, and this user has no power over it: its /sys is shown as it is
        fd = sc.open_tree("/sys", sc.OPEN_TREE_CLONE | sc.AT_RECURSIVE)
        sc.mount_setattr(fd, sc.MOUNT_ATTR_RDONLY, recursive=True)
        sc.move_mount(fd, f"{root}/sys")
        os.close(fd)
    if protected:
        _protect(root, "/sys")


def _protect(root: str, below: str) -> None:
    for path in READ_ONLY:
        if path.startswith(below) and os.path.exists(root + path):
            bind(root + path, root + path, flags=sc.MS_RDONLY | _NO_EXEC)
    for path in MASKED:
        if path.startswith(below):
            _mask(root + path, root)


def _mask(path: str, root: str) -> None:
    """Cover a folder with an empty read-only one, a file with /dev/null."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if stat.S_ISDIR(mode):
        sc.mount("tmpfs", path, "tmpfs", _NO_EXEC | sc.MS_RDONLY, "size=0,mode=555")
    else:
        bind(f"{root}/dev/null", path)


def mount_dev(root: str, shm_size: int, *, tty_group: bool = True) -> None:
    """Mount a /dev of its own: the usual nodes, /dev/pts, /dev/shm of ``shm_size`` bytes, /dev/mqueue.

    The nodes are binds of the host's on a file system without devices, so that a node made inside (mknod(2)) is inert. Terminals belong
    to group 5, ``tty`` everywhere, where that number exists (``tty_group``).
    """
    dev = f"{root}/dev"
    host = "/dev"
    sc.mount("tmpfs", dev, "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=755,size=64k,nr_inodes=1k")
    for name in _DEVICES:
        os.close(os.open(f"{dev}/{name}", os.O_CREAT | os.O_CLOEXEC, 0o666))
        bind(f"{host}/{name}", f"{dev}/{name}")
    for name, target in _DEVICE_LINKS.items():
        os.symlink(target, f"{dev}/{name}")
    for name in ("pts", "shm", "mqueue"):
        os.mkdir(f"{dev}/{name}", 0o755)
    sc.mount(
        "devpts", f"{dev}/pts", "devpts", sc.MS_NOSUID | sc.MS_NOEXEC, f"newinstance,ptmxmode=0666,mode=0620{',gid=5' if tty_group else ''}"
    )
    sc.mount("shm", f"{dev}/shm", "tmpfs", _NO_EXEC, f"mode=1777,size={shm_size}")
    sc.mount("mqueue", f"{dev}/mqueue", "mqueue", _NO_EXEC)


def become_root(root: str) -> None:
    """Make ``root`` the root of this mount namespace and let go of the old one, which no path reaches any more (pivot_root(2))."""
    os.chdir(root)
    sc.pivot_root(".", ".")
    sc.umount2(".", sc.MNT_DETACH)
    os.chdir("/")
