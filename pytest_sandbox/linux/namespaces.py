"""Open and join namespaces, and create the user namespace of payloads.

See namespaces(7), setns(2) and user_namespaces(7).
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NoReturn

from pytest_sandbox.errors import UnsupportedError
from pytest_sandbox.linux import process, userns
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.syscall_batch import SyscallBatch

if TYPE_CHECKING:
    from collections.abc import Callable


__all__ = [
    "add_enter",
    "identity",
    "make_user_namespace",
    "map_identity",
    "open_namespace",
    "open_pid_for_children",
    "pid_for_children",
    "set_hostname",
]


def open_namespace(pid: int, kind: str) -> int:
    """Return a descriptor of a namespace of a process: "mnt", "net", "pid", "user", ..."""
    return os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)


def identity(kind: str, pid: int | str = "self") -> str:
    """Return the identity of a namespace of a process, such as ``"mnt:[4026531841]"``."""
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def add_enter(batch: SyscallBatch, step: str, pidfd: int, flags: int, user_fd: int) -> None:
    """Append joining namespaces of the process ``pidfd``, and a user namespace if ``user_fd`` >= 0.

    ``flags`` are CLONE_NEW* flags. The process that runs the batch must be single-threaded; a PID
    namespace applies to its children only (setns(2)).
    """
    batch.add(step, "setns", pidfd, flags)
    if user_fd >= 0:
        batch.add(step, "setns", user_fd, sc.CLONE_NEWUSER)


def set_hostname(pidfd: int, name: str, builder_fd: int) -> None:
    """Set the host name in the UTS namespace of the process ``pidfd`` (sethostname(2)).

    ``builder_fd`` is the user namespace that owns it, or -1 for the caller's own.
    """
    batch, step = SyscallBatch(), "set host name"
    if builder_fd >= 0:
        batch.add(step, "setns", builder_fd, sc.CLONE_NEWUSER)
    batch.add(step, "setns", pidfd, sc.CLONE_NEWUTS)
    batch.add(step, "sethostname", name.encode(), len(name.encode()))
    batch.run_in_child()


def pid_for_children(fd: int) -> SyscallBatch:
    """Return a prepared batch that sets the PID namespace of this thread's future children.

    ``fd`` is a pidfd or a descriptor of a PID namespace (setns(2)). ESRCH: a process that is ending
    leaves its namespaces a moment before its pidfd becomes readable.
    """
    batch = SyscallBatch()
    batch.add("set the PID namespace of children", "setns", fd, sc.CLONE_NEWPID)
    batch.prepare()
    return batch


def open_pid_for_children() -> int:
    """Return a descriptor of the PID namespace of this thread's future children.

    Raises UnsupportedError if the thread could not set it back after setting another one.
    """
    own = os.open("/proc/thread-self/ns/pid_for_children", os.O_RDONLY | os.O_CLOEXEC)
    try:
        sc.setns(own, sc.CLONE_NEWPID)
    except OSError as error:
        os.close(own)
        remedy = (
            "Allow user namespaces (sysctl user.max_user_namespaces), or run as root of the "
            "PID namespace too (unshare --pid)."
        )
        raise UnsupportedError(
            f"entering a container from this user namespace ({error.strerror})", remedy
        ) from error
    return own


def make_user_namespace(*, rooted: bool = False, owner: int | None = None) -> int:
    """Return a descriptor of a new user namespace that maps every ID to itself.

    With ``rooted`` the caller's IDs are mapped to 0 instead. ``owner`` is the UID of its owner, by
    default the caller's; another one needs CAP_SETUID. Resources that the kernel counts per user
    namespace and UID (inotify instances, pending signals, ...) are charged to the owner in the
    parent namespace. Raises OSError if the kernel or its settings do not allow user namespaces.
    """
    pipes = [*os.pipe2(os.O_CLOEXEC), *os.pipe2(os.O_CLOEXEC)]
    created_reader, created_writer, mapped_reader, mapped_writer = pipes
    try:
        pid, pidfd = sc.clone3(0)
        if not pid:
            os.close(mapped_writer)
            _become_new_user_namespace(owner, created_writer, mapped_reader)
        _close(created_writer, pipes)
        try:
            _raise_errno(os.read(created_reader, 8))
            (_map_root if rooted else map_identity)(pid)
            return open_namespace(pid, "user")
        finally:
            _close(mapped_writer, pipes)
            process.await_exit(pid, pidfd, None)
            os.close(pidfd)
    finally:
        for fd in pipes.copy():
            _close(fd, pipes)


def _become_new_user_namespace(owner: int | None, created: int, mapped: int) -> NoReturn:
    """Move this process into a new user namespace, and exit when ``mapped`` is closed.

    It writes the errno of unshare(2), 0 for success, to ``created``.
    """
    code = 0
    try:
        if owner is not None:
            permitted = sc.getcaps()[1]
            os.seteuid(owner)  # clears the effective set (capabilities(7))
            sc.capset(permitted, permitted, 0)
        userns.unshare_user_namespace()
    except OSError as error:
        code = error.errno or errno.EIO
    finally:
        os.write(created, b"%d" % code)
        os.read(mapped, 1)
        os._exit(0)


def _raise_errno(digits: bytes) -> None:
    code = int(digits or errno.EIO)
    if code:
        raise OSError(code, f"{os.strerror(code)}: making a user namespace")


def _close(fd: int, fds: list[int]) -> None:
    """Close a descriptor and remove it from the list, if it is there."""
    if fd in fds:
        fds.remove(fd)
        os.close(fd)


def map_identity(pid: int) -> None:
    """Map every UID and GID to itself in the user namespace of ``pid``.

    File owners are the same as outside, but capabilities apply inside only.
    """
    _map(pid, lambda extents, _own: [(first, first, count) for first, _outside, count in extents])


def _map_root(pid: int) -> None:
    """Map the calling user to root, and its other IDs to the following ones, for images."""
    _map(pid, userns.root_map)


def _map(pid: int, wanted: Callable[[list[userns.Extent], int], list[userns.Extent]]) -> None:
    for kind, own in (("uid", os.geteuid()), ("gid", os.getegid())):
        text = "".join(
            f"{first} {outside} {count}\n"
            for first, outside, count in wanted(userns.read_map(kind), own)
        )
        fd = os.open(f"/proc/{pid}/{kind}_map", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
