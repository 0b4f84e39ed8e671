"""System calls that Python's standard library lacks: one typed function each, one errno door, the
only ctypes.

At its end the door to the machine code of :mod:`pytest_sandbox.linux.syscall_batch`.

Every function raises the :class:`OSError` subclass of its errno, whose text names the call and its
arguments. Numbers of 424 and above are the same on every architecture
(``include/uapi/asm-generic/unistd.h``); the older ones stand in ``_OLD_NUMBERS``.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "block_signals",
    "capset",
    "clear_memory",
    "clone3",
    "fork_handlers",
    "getcaps",
    "join_new_session_keyring",
    "madvise",
    "map_code",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "openat2",
    "prctl",
    "pthread_sigmask",
    "seccomp_set_filter",
    "set_signal_mask",
    "setns",
    "signal_mask",
    "spawn_code",
    "umount2",
    "unshare",
]

# <linux/sched.h>
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_VM = 0x00000100
CLONE_FILES = 0x00000400
CLONE_PIDFD = 0x00001000
CLONE_VFORK = 0x00004000
CLONE_PARENT = 0x00008000
CLONE_CLEAR_SIGHAND = 0x100000000
CLONE_INTO_CGROUP = 0x200000000

# <linux/mount.h>
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MNT_DETACH = 2
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
AT_RECURSIVE = 0x8000
AT_EMPTY_PATH = 0x1000
MOVE_MOUNT_F_EMPTY_PATH = 0x00000004
MOVE_MOUNT_T_EMPTY_PATH = 0x00000040
MOUNT_ATTR_RDONLY = 0x00000001
MOUNT_ATTR_NOSUID = 0x00000002
MOUNT_ATTR_NODEV = 0x00000004

# <linux/openat2.h>
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

# <linux/close_range.h>
CLOSE_RANGE_CLOEXEC = 4
MOST_FDS = (1 << 32) - 1  # the last descriptor that close_range(2) takes

# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_GET_SECCOMP = 21
PR_SET_SECCOMP = 22
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2

CAPABILITY_VERSION = 0x20080522
_SECCOMP_MODE_FILTER = 2
_KEYCTL_JOIN_SESSION_KEYRING = 1

_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_CLONE3 = 435
_NR_OPENAT2 = 437
_NR_MOUNT_SETATTR = 442
_OLD_NUMBERS = {
    "x86_64": {"keyctl": 250},
    "aarch64": {"keyctl": 219},
}

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_setns = _libc.setns
_mount = _libc.mount
_mount.argtypes = [
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
]
_umount2 = _libc.umount2
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]


class _CloneArgs(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls", "set_tid", "set_tid_size", "cgroup",
        )
    ]  # fmt: skip


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


class _MountAttr(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


MOUNT_ATTR_SIZE = ctypes.sizeof(_MountAttr)


def mount_attributes(set_: int) -> bytes:
    """Return what mount_setattr(2) takes: attributes to set."""
    return bytes(_MountAttr(attr_set=set_))


def open_how(flags: int, resolve: int, mode: int = 0) -> bytes:
    """Return what openat2(2) takes: flags, the mode of what is made, and the rules of
    resolution.
    """
    return bytes(_OpenHow(flags=flags | os.O_CLOEXEC, mode=mode, resolve=resolve))


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _CapData(ctypes.Structure):
    _fields_ = [
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    ]


class _SockFprog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def _checked(result: int, call: str, *arguments: object) -> int:
    """Return a call's result, or raise what errno says, with the call as the error's text: the one
    errno door.
    """
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)}: {call}({', '.join(map(str, arguments))})")
    return result


def _old_number(name: str) -> int:
    machine = os.uname().machine
    try:
        return _OLD_NUMBERS[machine][name]
    except KeyError:
        raise OSError(38, f"no system-call number for {name} on {machine}") from None


def _bytes(path: str | bytes | None) -> bytes | None:
    return os.fsencode(path) if path is not None else None


def clone3(flags: int, *, cgroup: int = -1) -> tuple[int, int]:
    """Fork into new namespaces (clone3(2)): ``(pid, pidfd)`` in the parent, ``(0, -1)`` in the
    child.

    Only for a single-threaded process: Python's and libc's own fork handlers do not run, which is
    what makes it cheap. With ``CLONE_INTO_CGROUP`` in ``flags``, ``cgroup`` is the descriptor of a
    version 2 group's directory.
    """
    pidfd = ctypes.c_int(-1)
    arguments = _CloneArgs(
        flags=flags | CLONE_PIDFD,
        pidfd=ctypes.addressof(pidfd),
        exit_signal=17,
        cgroup=cgroup if flags & CLONE_INTO_CGROUP else 0,
    )
    pid = _checked(
        _syscall(_NR_CLONE3, ctypes.byref(arguments), ctypes.sizeof(arguments)),
        "clone3",
        hex(flags),
    )
    return (pid, pidfd.value) if pid else (0, -1)


def fork_handlers() -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
    """Return what CPython calls before a fork, after it in the parent, and after it in the child.

    For a fork that os.fork() cannot make; the caller has to be single-threaded, since the C
    library's own handlers do not run (PyOS_BeforeFork and its kin).
    """
    before, after, inside = (
        getattr(ctypes.pythonapi, f"PyOS_{name}")
        for name in ("BeforeFork", "AfterFork_Parent", "AfterFork_Child")
    )
    return before, after, inside


def clear_memory(address: int, length: int) -> None:
    """Fill a stretch of this process's memory with zeros."""
    ctypes.memset(address, 0, length)


def setns(fd: int, flags: int) -> None:
    """Move the calling thread into the namespaces ``flags`` of a namespace's or a process's
    descriptor (setns(2)).
    """
    _checked(_setns(fd, flags), "setns", fd, hex(flags))


def unshare(flags: int) -> None:
    """Give the calling thread new namespaces (unshare(2))."""
    _checked(_libc.unshare(flags), "unshare", hex(flags))


def mount(
    source: str | bytes | None,
    target: str | bytes,
    fstype: str | None,
    flags: int = 0,
    data: str | bytes | None = None,
) -> None:
    """Mount a file system (mount(2))."""
    result = _mount(_bytes(source), _bytes(target), _bytes(fstype), flags, _bytes(data))
    if result < 0:
        _checked(result, "mount", source, target, fstype, hex(flags), data)


def madvise(address: int, length: int, advice: int) -> None:
    """Give advice about a stretch of this process's memory (madvise(2))."""
    _checked(
        _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), advice),
        "madvise",
        hex(address),
        length,
        advice,
    )


def umount2(target: str | bytes, flags: int = 0) -> None:
    """Unmount what is mounted on ``target`` (umount2(2))."""
    _checked(_umount2(ctypes.c_char_p(_bytes(target)), flags), "umount2", target, flags)


def open_tree(path: str | bytes, flags: int, dir_fd: int = -100) -> int:
    """Open a mount, or with ``OPEN_TREE_CLONE`` a detached copy of it (open_tree(2)); returns a
    descriptor.
    """
    arguments = (
        ctypes.c_int(dir_fd),
        ctypes.c_char_p(_bytes(path)),
        ctypes.c_uint(flags | OPEN_TREE_CLOEXEC),
    )
    return _checked(_syscall(_NR_OPEN_TREE, *arguments), "open_tree", path, hex(flags))


def move_mount(fd: int, target: str | bytes, *, target_fd: int = -100) -> None:
    """Attach the detached mount ``fd`` on ``target``, or on ``target_fd`` itself where ``target``
    is empty (move_mount(2)).
    """
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if target else MOVE_MOUNT_T_EMPTY_PATH)
    arguments = (
        ctypes.c_int(fd),
        ctypes.c_char_p(b""),
        ctypes.c_int(target_fd),
        ctypes.c_char_p(_bytes(target)),
        ctypes.c_uint(flags),
    )
    _checked(_syscall(_NR_MOVE_MOUNT, *arguments), "move_mount", fd, target or target_fd)


def mount_setattr(fd: int, set_: int, *, recursive: bool = False) -> None:
    """Set attributes of the mount ``fd``, and of all below it where ``recursive``
    (mount_setattr(2), Linux 5.12).
    """
    attributes = _MountAttr(attr_set=set_)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    arguments = (
        ctypes.c_int(fd),
        ctypes.c_char_p(b""),
        ctypes.c_uint(flags),
        ctypes.byref(attributes),
        ctypes.sizeof(attributes),
    )
    _checked(_syscall(_NR_MOUNT_SETATTR, *arguments), "mount_setattr", fd, hex(set_))


def openat2(
    path: str | bytes, flags: int, resolve: int, *, mode: int = 0, dir_fd: int = -100
) -> int:
    """Open ``path`` with the resolution rules ``resolve`` (openat2(2)); returns a descriptor."""
    how = _OpenHow(flags=flags | os.O_CLOEXEC, mode=mode, resolve=resolve)
    arguments = (
        ctypes.c_int(dir_fd),
        ctypes.c_char_p(_bytes(path)),
        ctypes.byref(how),
        ctypes.sizeof(how),
    )
    return _checked(_syscall(_NR_OPENAT2, *arguments), "openat2", path, hex(flags), hex(resolve))


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """Operate on the calling process or thread (prctl(2)); returns the call's result."""
    result: int = _prctl(option, arg2, arg3, arg4, arg5)
    return result if result >= 0 else _checked(result, "prctl", option, arg2)


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the calling thread's capability sets, each a mask with bit N for capability N
    (capset(2)).
    """
    header = _CapHeader(CAPABILITY_VERSION, 0)
    low, high = ((1 << 32) - 1, 32)
    data = (_CapData * 2)(
        _CapData(effective & low, permitted & low, inheritable & low),
        _CapData(effective >> high, permitted >> high, inheritable >> high),
    )
    _checked(
        _libc.capset(ctypes.byref(header), data),
        "capset",
        hex(effective),
        hex(permitted),
        hex(inheritable),
    )


def getcaps() -> tuple[int, int, int]:
    """Return the calling thread's effective, permitted and inheritable capabilities as masks
    (capget(2)).
    """
    header = _CapHeader(CAPABILITY_VERSION, 0)
    data = (_CapData * 2)()
    _checked(_libc.capget(ctypes.byref(header), data), "capget")
    low, high = data
    return (
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def seccomp_set_filter(program: bytes) -> None:
    """Load a seccomp filter, ``struct sock_filter`` after another, for the calling thread and what
    it starts (seccomp(2)).
    """
    fprog = _SockFprog(len(program) // 8, program)
    result = _prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(fprog), 0, 0)
    _checked(result, "prctl", "PR_SET_SECCOMP", f"{fprog.len} instructions")


def join_new_session_keyring() -> None:
    """Leave the inherited session keyring for a new, empty one (keyctl(2),
    KEYCTL_JOIN_SESSION_KEYRING).
    """
    result = _syscall(
        _old_number("keyctl"),
        ctypes.c_int(_KEYCTL_JOIN_SESSION_KEYRING),
        ctypes.c_char_p(None),
        0,
        0,
        0,
    )
    _checked(result, "keyctl", "KEYCTL_JOIN_SESSION_KEYRING")


SIG_BLOCK, SIG_SETMASK = 0, 2
#: Bytes of the C library's sigset_t.
SIGNAL_MASK_SIZE = 128
EVERY_SIGNAL = ctypes.c_char_p(b"\xff" * 128)
pthread_sigmask = ctypes.PyDLL(None).pthread_sigmask
pthread_sigmask.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
_PROT_READ_EXEC = mmap.PROT_READ | mmap.PROT_EXEC
_mapped: list[mmap.mmap] = []
# With the interpreter's lock held: no other thread may fork, or change what the code reads, while a
# child shares this memory.
_CODE = ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


def address_of(buffer: bytearray | mmap.mmap) -> int:
    """Return where a buffer lies in memory; it must not be resized, and lives as long as its owner
    keeps it.
    """
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def map_code(code: bytes) -> Callable[[int, int], int]:
    """Map machine code for the life of this process, executable and no longer writable; returns it
    as a function of two addresses.

    See mmap(2), mprotect(2).
    """
    page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page.write(code)
    _mapped.append(page)
    address = address_of(page)
    _checked(
        _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), _PROT_READ_EXEC),
        "mprotect",
        "PROT_EXEC",
    )
    return cast("Callable[[int, int], int]", _CODE(address))


def block_signals(saved: int) -> None:
    """Block all signals of the calling thread, whose mask until then is written to the address
    ``saved`` (sigprocmask(2)).
    """
    pthread_sigmask(SIG_SETMASK, EVERY_SIGNAL, saved)


def set_signal_mask(saved: int) -> None:
    """Give the calling thread the mask at an address."""
    pthread_sigmask(SIG_SETMASK, saved, None)


def signal_mask() -> bytes:
    """Return the signal mask of the calling thread, as rt_sigprocmask(2) takes it."""
    mask = ctypes.create_string_buffer(SIGNAL_MASK_SIZE)
    pthread_sigmask(SIG_BLOCK, None, mask)
    return mask.raw[:8]


def sibling_arguments(cgroup: int) -> bytes:
    """Return what clone3(2) takes for a fork that is a child of the caller's own parent.

    With ``cgroup`` >= 0 it starts in that version 2 cgroup.
    """
    into = CLONE_INTO_CGROUP if cgroup >= 0 else 0
    return bytes(_CloneArgs(flags=CLONE_PARENT | into, cgroup=max(cgroup, 0)))


def spawn_code(
    code: Callable[[int, int], int], flags: int, cgroup: int, argument: int
) -> tuple[int, int]:
    """Call mapped code in a child that shares this memory until it executes a program or ends;
    returns its number and a pidfd.

    With ``cgroup`` >= 0 it starts in that version 2 group. Raises :class:`OSError` where there was
    no child.
    """
    pidfd = ctypes.c_int(-1)
    into = CLONE_INTO_CGROUP if cgroup >= 0 else 0
    how = _CloneArgs(
        flags=flags | into | CLONE_VM | CLONE_VFORK | CLONE_PIDFD | CLONE_CLEAR_SIGHAND,
        pidfd=ctypes.addressof(pidfd),
        exit_signal=17,
        cgroup=max(cgroup, 0),
    )
    pid = code(ctypes.addressof(how), argument)
    if pid < 0:
        raise OSError(-pid, f"{os.strerror(-pid)}: clone3({hex(flags)})")
    return pid, pidfd.value
