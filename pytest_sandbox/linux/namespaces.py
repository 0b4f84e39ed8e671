"""Namespaces: opening, entering, and the identity map of the payloads' user namespace
(namespaces(7), user_namespaces(7)).
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NoReturn

from pytest_sandbox.errors import ContainerStopped, UnsupportedError
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
    "map_rooted",
    "name_host",
    "open_for_children",
    "open_of",
    "set_for_children",
]


def open_of(pid: int, kind: str) -> int:
    """Return a descriptor of a process's namespace: "mnt", "net", "pid", "user", ..."""
    return os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)


def identity(kind: str, pid: int | str = "self") -> str:
    """Return what tells one namespace of a process, the calling one unless named, from every other:
    ``"mnt:[4026531841]"``.
    """
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def add_enter(batch: SyscallBatch, step: str, pidfd: int, flags: int, user_fd: int) -> None:
    """Append entering the namespaces ``flags`` of the process ``pidfd`` (setns(2)), and then a user
    namespace, if ``user_fd`` >= 0.

    The process that runs it has one thread, and gets its PID namespace when it is forked.
    """
    batch.add(step, "setns", pidfd, flags)
    if user_fd >= 0:
        batch.add(step, "setns", user_fd, sc.CLONE_NEWUSER)


def name_host(pidfd: int, name: str, builder_fd: int) -> None:
    """Change the host name that a process sees, with the power of a user namespace, -1 for the
    calling process's own (sethostname(2)).
    """
    batch, step = SyscallBatch(), "name host"
    if builder_fd >= 0:
        batch.add(step, "setns", builder_fd, sc.CLONE_NEWUSER)
    batch.add(step, "setns", pidfd, sc.CLONE_NEWUTS)
    batch.add(step, "sethostname", name.encode(), len(name.encode()))
    batch.run_in_child()


def set_for_children(fd: int) -> None:
    """Let what this thread forks from now on begin in the PID namespace of a process's or
    namespace's descriptor (setns(2)).

    Raises :class:`ContainerStopped` for a process that is ending: it has lost its namespaces a
    moment before its descriptor says so.
    """
    try:
        sc.setns(fd, sc.CLONE_NEWPID)
    except ProcessLookupError as error:
        raise ContainerStopped.ended() from error


def open_for_children() -> int:
    """Return a descriptor of the PID namespace in which this thread's children begin.

    Raises :class:`UnsupportedError` where the thread could not come back to it: it must not go
    elsewhere then.
    """
    own = os.open("/proc/thread-self/ns/pid_for_children", os.O_RDONLY | os.O_CLOEXEC)
    try:
        set_for_children(own)
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
    """Return the descriptor of a new user namespace in which everybody is who he is outside, or,
    ``rooted``, the caller is root.

    ``owner`` is the UID that owns it, by default the caller's; another one takes CAP_SETUID. What
    the kernel counts by user namespace and UID (inotify instances, pending signals, ...) is charged
    to the owner in the parent namespace. Raises :class:`OSError` where this kernel or its settings
    allow none.
    """
    pipes = [*os.pipe2(os.O_CLOEXEC), *os.pipe2(os.O_CLOEXEC)]
    made_reader, made_writer, mapped_reader, mapped_writer = pipes
    try:
        pid, pidfd = sc.clone3(0)
        if not pid:
            os.close(mapped_writer)
            _become_new_user_namespace(owner, made_writer, mapped_reader)
        _close(made_writer, pipes)
        try:
            _raise_sent(os.read(made_reader, 8))
            (map_rooted if rooted else map_identity)(pid)
            return open_of(pid, "user")
        finally:
            _close(mapped_writer, pipes)
            process.await_exit(pid, pidfd, None)
            os.close(pidfd)
    finally:
        for fd in pipes.copy():
            _close(fd, pipes)


def _become_new_user_namespace(owner: int | None, made: int, mapped: int) -> NoReturn:
    """Move this process into a new user namespace, write the errno of that to ``made``, and end
    when ``mapped`` is closed.
    """
    number = 0
    try:
        if owner is not None:
            permitted = sc.getcaps()[1]
            os.seteuid(owner)  # which empties the effective set (capabilities(7))
            sc.capset(permitted, permitted, 0)
        sc.unshare(sc.CLONE_NEWUSER)
    except OSError as error:
        number = error.errno or errno.EIO
    finally:
        os.write(made, b"%d" % number)
        os.read(mapped, 1)
        os._exit(0)


def _raise_sent(digits: bytes) -> None:
    number = int(digits or errno.EIO)
    if number:
        raise OSError(number, f"{os.strerror(number)}: making a user namespace")


def _close(fd: int, among: list[int]) -> None:
    """Close a descriptor of a list, once."""
    if fd in among:
        among.remove(fd)
        os.close(fd)


def map_identity(pid: int) -> None:
    """Map every user and group to itself in the user namespace of ``pid``: ownership looks as
    outside, power does not follow.
    """
    _map(pid, lambda extents, _own: [(first, first, count) for first, _outside, count in extents])


def map_rooted(pid: int) -> None:
    """Map the calling user to root in the user namespace of ``pid``, and the other numbers that it
    has to the others: for images.
    """
    _map(pid, userns.rooted)


def _map(pid: int, wanted: Callable[[list[userns.Extent], int], list[userns.Extent]]) -> None:
    for kind, own in (("uid", os.geteuid()), ("gid", os.getegid())):
        text = "".join(
            f"{first} {outside} {count}\n"
            for first, outside, count in wanted(userns.mapped(kind), own)
        )
        fd = os.open(f"/proc/{pid}/{kind}_map", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
