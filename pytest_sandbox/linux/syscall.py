"""System calls that Python's standard library does not have, with ctypes; and their constants.

Every function raises the OSError subclass of its errno, whose text has the call and its arguments.
System call numbers from 424 on are the same on every architecture
(``include/uapi/asm-generic/unistd.h``); lower ones are in ``_OLD_NUMBERS``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal

__all__ = [
    "block_signals",
    "capset",
    "clone3",
    "getcaps",
    "join_new_session_keyring",
    "madvise",
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
FSOPEN_CLOEXEC = FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 1, 6
MOUNT_ATTR_RDONLY = 0x00000001
MOUNT_ATTR_NOSUID = 0x00000002
MOUNT_ATTR_NODEV = 0x00000004
MOUNT_ATTR_NOEXEC = 0x00000008

# <linux/openat2.h>
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

# <linux/close_range.h>
CLOSE_RANGE_CLOEXEC = 4
MAX_FD = (1 << 32) - 1  # the highest descriptor that close_range(2) accepts

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

libc = ctypes.CDLL(None, use_errno=True)
_syscall = libc.syscall
_syscall.restype = ctypes.c_long
_setns = libc.setns
_mount = libc.mount
_mount.argtypes = [
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
]
_umount2 = libc.umount2
_prctl = libc.prctl
_prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]


class CloneArgs(ctypes.Structure):
    """struct clone_args of clone3(2)."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    ]


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


class _MountAttr(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


def mount_attributes(set_: int) -> bytes:
    """Return a struct mount_attr that sets attributes (mount_setattr(2))."""
    return bytes(_MountAttr(attr_set=set_))


def open_how(flags: int, resolve: int, mode: int = 0) -> bytes:
    """Return a struct open_how (openat2(2))."""
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


def checked(result: int, call: str, *arguments: object) -> int:
    """Return the result of a call, or raise OSError with its errno, name and arguments."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{os.strerror(code)}: {call}({', '.join(map(str, arguments))})")
    return result


def _old_number(name: str) -> int:
    machine = os.uname().machine
    try:
        return _OLD_NUMBERS[machine][name]
    except KeyError:
        raise OSError(errno.ENOSYS, f"no system-call number for {name} on {machine}") from None


def _bytes(path: str | bytes | None) -> bytes | None:
    return os.fsencode(path) if path is not None else None


def clone3(flags: int, *, cgroup: int = -1) -> tuple[int, int]:
    """Fork into new namespaces (clone3(2)).

    Returns ``(pid, pidfd)`` in the parent, ``(0, -1)`` in the child. The process must be
    single-threaded: the fork handlers of Python and the C library do not run, which makes this
    fast. ``cgroup`` is a descriptor of a cgroup v2 if CLONE_INTO_CGROUP is in ``flags``.
    """
    pidfd = ctypes.c_int(-1)
    arguments = CloneArgs(
        flags=flags | CLONE_PIDFD,
        pidfd=ctypes.addressof(pidfd),
        exit_signal=signal.SIGCHLD,
        cgroup=cgroup if flags & CLONE_INTO_CGROUP else 0,
    )
    pid = checked(
        _syscall(_NR_CLONE3, ctypes.byref(arguments), ctypes.sizeof(arguments)),
        "clone3",
        hex(flags),
    )
    return (pid, pidfd.value) if pid else (0, -1)


def setns(fd: int, flags: int) -> None:
    """Move the calling thread into a namespace, or into those of a pidfd (setns(2))."""
    checked(_setns(fd, flags), "setns", fd, hex(flags))


def unshare(flags: int) -> None:
    """Move the calling thread into new namespaces (unshare(2))."""
    checked(libc.unshare(flags), "unshare", hex(flags))


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
        checked(result, "mount", source, target, fstype, hex(flags), data)


def madvise(address: int, length: int, advice: int) -> None:
    """Advise the kernel about ``length`` bytes of memory at ``address`` (madvise(2))."""
    checked(
        libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), advice),
        "madvise",
        hex(address),
        length,
        advice,
    )


def umount2(target: str | bytes, flags: int = 0) -> None:
    """Unmount ``target`` (umount2(2))."""
    checked(_umount2(ctypes.c_char_p(_bytes(target)), flags), "umount2", target, flags)


def open_tree(path: str | bytes, flags: int, dir_fd: int = -100) -> int:
    """Return a descriptor of a mount, or of a copy with OPEN_TREE_CLONE (open_tree(2))."""
    arguments = (
        ctypes.c_int(dir_fd),
        ctypes.c_char_p(_bytes(path)),
        ctypes.c_uint(flags | OPEN_TREE_CLOEXEC),
    )
    return checked(_syscall(_NR_OPEN_TREE, *arguments), "open_tree", path, hex(flags))


def move_mount(fd: int, target: str | bytes, *, target_fd: int = -100) -> None:
    """Attach the mount ``fd`` to ``target``, relative to ``target_fd`` (move_mount(2))."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if target else MOVE_MOUNT_T_EMPTY_PATH)
    arguments = (
        ctypes.c_int(fd),
        ctypes.c_char_p(b""),
        ctypes.c_int(target_fd),
        ctypes.c_char_p(_bytes(target)),
        ctypes.c_uint(flags),
    )
    checked(_syscall(_NR_MOVE_MOUNT, *arguments), "move_mount", fd, target or target_fd)


def mount_setattr(fd: int, set_: int, *, recursive: bool = False) -> None:
    """Set attributes of the mount ``fd``, and of those below it if ``recursive``.

    See mount_setattr(2), since Linux 5.12.
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
    checked(_syscall(_NR_MOUNT_SETATTR, *arguments), "mount_setattr", fd, hex(set_))


def openat2(
    path: str | bytes, flags: int, resolve: int, *, mode: int = 0, dir_fd: int = -100
) -> int:
    """Return a descriptor of ``path``; ``resolve`` are RESOLVE_* flags (openat2(2))."""
    how = _OpenHow(flags=flags | os.O_CLOEXEC, mode=mode, resolve=resolve)
    arguments = (
        ctypes.c_int(dir_fd),
        ctypes.c_char_p(_bytes(path)),
        ctypes.byref(how),
        ctypes.sizeof(how),
    )
    return checked(_syscall(_NR_OPENAT2, *arguments), "openat2", path, hex(flags), hex(resolve))


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """Operate on the calling process or thread (prctl(2)); return the result."""
    result: int = _prctl(option, arg2, arg3, arg4, arg5)
    return result if result >= 0 else checked(result, "prctl", option, arg2)


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the capability sets of the calling thread, as masks (capset(2))."""
    header = _CapHeader(CAPABILITY_VERSION, 0)
    low, high = ((1 << 32) - 1, 32)
    data = (_CapData * 2)(
        _CapData(effective & low, permitted & low, inheritable & low),
        _CapData(effective >> high, permitted >> high, inheritable >> high),
    )
    checked(
        libc.capset(ctypes.byref(header), data),
        "capset",
        hex(effective),
        hex(permitted),
        hex(inheritable),
    )


def getcaps() -> tuple[int, int, int]:
    """Return the effective, permitted and inheritable sets of this thread as masks (capget(2))."""
    header = _CapHeader(CAPABILITY_VERSION, 0)
    data = (_CapData * 2)()
    checked(libc.capget(ctypes.byref(header), data), "capget")
    low, high = data
    return (
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def seccomp_set_filter(program: bytes) -> None:
    """Load a seccomp filter, an array of struct sock_filter, for this thread (seccomp(2))."""
    fprog = _SockFprog(len(program) // 8, program)
    result = _prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(fprog), 0, 0)
    checked(result, "prctl", "PR_SET_SECCOMP", f"{fprog.len} instructions")


def join_new_session_keyring() -> None:
    """Replace the inherited session keyring by a new one (KEYCTL_JOIN_SESSION_KEYRING(2const))."""
    result = _syscall(
        _old_number("keyctl"),
        ctypes.c_int(_KEYCTL_JOIN_SESSION_KEYRING),
        ctypes.c_char_p(None),
        0,
        0,
        0,
    )
    checked(result, "keyctl", "KEYCTL_JOIN_SESSION_KEYRING")


SIG_BLOCK, SIG_SETMASK = 0, 2
#: The size of the C library's sigset_t in bytes.
SIGNAL_MASK_SIZE = 128
EVERY_SIGNAL = ctypes.c_char_p(b"\xff" * 128)
pthread_sigmask = ctypes.PyDLL(None).pthread_sigmask
pthread_sigmask.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]


def block_signals(saved: int) -> None:
    """Block all signals of this thread; write the old mask to the address ``saved``.

    See pthread_sigmask(3).
    """
    pthread_sigmask(SIG_SETMASK, EVERY_SIGNAL, saved)


def set_signal_mask(saved: int) -> None:
    """Set the signal mask of this thread to the mask at the address ``saved``."""
    pthread_sigmask(SIG_SETMASK, saved, None)


def signal_mask() -> bytes:
    """Return the signal mask of this thread, in the format of rt_sigprocmask(2)."""
    mask = ctypes.create_string_buffer(SIGNAL_MASK_SIZE)
    pthread_sigmask(SIG_BLOCK, None, mask)
    return mask.raw[:8]


def clone_sibling_args(cgroup: int) -> bytes:
    """Return a struct clone_args for a fork that becomes a child of the caller's parent.

    With ``cgroup`` >= 0, a descriptor of a cgroup v2, it starts in it.
    """
    into = CLONE_INTO_CGROUP if cgroup >= 0 else 0
    return bytes(CloneArgs(flags=CLONE_PARENT | into, cgroup=max(cgroup, 0)))
