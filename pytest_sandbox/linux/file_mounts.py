"""Single files that are mounts of their own (docker's /etc/hosts, a bind-mounted docker.sock), as
containers get them.

An overlay cannot lie over a single file, and a bind mount would be the host's: a socket accepts
connections, a FIFO takes writes, a lock (flock(2)) is the host's lock. So a container finds a copy
of a plain file, and a new, inert node in place of a socket or a FIFO. They lie in a directory that
is a lower layer of the overlay around them: written, renamed and removed as any other file below
it.
"""

from __future__ import annotations

import os
import stat
import struct
from typing import TYPE_CHECKING, NamedTuple

from pytest_sandbox.linux import userns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pytest_sandbox.linux.syscall_batch import SyscallBatch

__all__ = [
    "LARGEST",
    "Node",
    "Stamp",
    "add_nodes",
    "are_current",
    "copy_of",
    "is_unreachable",
    "stamp",
]

#: Bytes up to which a file is copied.
LARGEST = 1 << 20
_NANOSECONDS = 10**9
_SET_ID = stat.S_ISUID | stat.S_ISGID


class Node(NamedTuple):
    """A file to be made: its path below its overlay's point, without a slash before it, type and
    mode, owner, and content.
    """

    path: str
    mode: int
    owner: tuple[int, int]
    content: bytes = b""


class Stamp(NamedTuple):
    """What identifies a file or directory, and its content where ``changed`` (st_ctime_ns) is not
    0.
    """

    path: str
    device: int
    inode: int
    changed: int


def stamp(path: str, *, content: bool) -> Stamp:
    """Return what identifies what lies at ``path`` now, with its content or without.

    Raises :class:`OSError`.
    """
    status = os.stat(path)
    return Stamp(path, status.st_dev, status.st_ino, status.st_ctime_ns if content else 0)


def are_current(stamps: Iterable[Stamp]) -> bool:
    """Return whether what lies at the paths is still the same."""
    try:
        return all(stamp(one.path, content=bool(one.changed)) == one for one in stamps)
    except OSError:
        return False


def is_unreachable(mode: int) -> bool:
    """Return whether a file of this type leads to other processes, so that a container gets one of
    its own instead.
    """
    return stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode)


def copy_of(path: str, below: str) -> Node:
    """Return the node that stands for the host's file ``path`` in the overlay at ``below``; a plain
    file with its content.

    Raises :class:`OSError`.
    """
    status = os.stat(path)
    content = _content(path) if stat.S_ISREG(status.st_mode) else b""
    return Node(
        os.path.relpath(path, below or "/"), status.st_mode, (status.st_uid, status.st_gid), content
    )


def _content(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        return file.read(LARGEST)


def add_nodes(
    batch: SyscallBatch,
    step: str,
    directory: str,
    nodes: Iterable[Node],
    status_of: Callable[[str], os.stat_result],
) -> None:
    """Make a directory with these nodes in it, a lower layer.

    ``status_of`` returns what a directory on the way looks like in the layers below, since this one
    lies above them.
    """
    batch.add(
        step, "mkdirat", -1, os.fsencode(directory), 0o755
    )  # what / looks like is said by the layers above
    made: set[str] = set()
    for node in nodes:
        for parent in _parents(node.path):
            if parent not in made:
                made.add(parent)
                _add_directory(batch, step, os.fsencode(f"{directory}/{parent}"), status_of(parent))
        _add_node(batch, step, os.fsencode(f"{directory}/{node.path}"), node)


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: end + 1]) for end in range(len(parts))]


def _add_directory(batch: SyscallBatch, step: str, name: bytes, status: os.stat_result) -> None:
    mode = stat.S_IMODE(status.st_mode)
    batch.add(step, "mkdirat", -1, name, mode)
    _add_attributes(batch, step, name, mode, (status.st_uid, status.st_gid))
    times = [
        part
        for time in (status.st_atime_ns, status.st_mtime_ns)
        for part in divmod(time, _NANOSECONDS)
    ]
    batch.add(step, "utimensat", -1, name, struct.pack("4q", *times), 0)


def _add_node(batch: SyscallBatch, step: str, name: bytes, node: Node) -> None:
    mode = stat.S_IMODE(node.mode)
    if stat.S_ISREG(node.mode):
        fd = batch.open(step, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode=mode)
        batch.add(step, "write", fd, node.content, len(node.content))
        batch.close(step, fd)
    else:
        batch.add(step, "mknodat", -1, name, node.mode, 0)
    _add_attributes(batch, step, name, mode, node.owner)


def _add_attributes(
    batch: SyscallBatch, step: str, name: bytes, mode: int, owner: tuple[int, int]
) -> None:
    """Set owner and mode, where they are not what they are by being made: the batch's umask is 0,
    and chown(2) takes set-ID bits away.
    """
    is_own = owner == (os.geteuid(), os.getegid())
    if not is_own and userns.has_id("uid", owner[0]) and userns.has_id("gid", owner[1]):
        batch.add(step, "fchownat", -1, name, *owner, 0)
    if mode & _SET_ID:
        batch.add(step, "fchmodat", -1, name, mode)
