"""Copies of files that are mount points on the host, such as docker's /etc/hosts or docker.sock.

An overlay cannot be mounted on a file, and a bind mount would give access to the host: a socket
accepts connections, a FIFO takes writes, flock(2) locks the host's file. So a container gets a copy
of a regular file, and a new, unconnected node for a socket or FIFO. The copies are in a lower layer
of the overlay around them, so that they can be written, renamed and removed like other files.
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
    "MAX_SIZE",
    "Node",
    "Stamp",
    "add_nodes",
    "are_current",
    "copy_of",
    "is_unreachable",
    "stamp",
]

#: Files of up to this many bytes are copied.
MAX_SIZE = 1 << 20
_NANOSECONDS = 10**9
_SET_ID = stat.S_ISUID | stat.S_ISGID


class Node(NamedTuple):
    """A file to create: its path relative to the overlay, type and mode, owner and content."""

    path: str
    mode: int
    owner: tuple[int, int]
    content: bytes = b""


class Stamp(NamedTuple):
    """The identity of a file or directory, and of its content if ``changed`` is not 0.

    ``changed`` is st_ctime_ns (stat(3type)).
    """

    path: str
    device: int
    inode: int
    changed: int


def stamp(path: str, *, content: bool) -> Stamp:
    """Return the identity of the file ``path``, with that of its content or without.

    Raises OSError.
    """
    status = os.stat(path)
    return Stamp(path, status.st_dev, status.st_ino, status.st_ctime_ns if content else 0)


def are_current(stamps: Iterable[Stamp]) -> bool:
    """Return whether every path still refers to the same file, with the same content."""
    try:
        return all(stamp(old.path, content=bool(old.changed)) == old for old in stamps)
    except OSError:
        return False


def is_unreachable(mode: int) -> bool:
    """Return whether a file of this type connects to other processes, so that it is replaced."""
    return stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode)


def copy_of(path: str, below: str) -> Node:
    """Return the node that replaces the host's file ``path`` in the overlay at ``below``.

    A regular file is copied with its content. Raises OSError.
    """
    status = os.stat(path)
    content = _content(path) if stat.S_ISREG(status.st_mode) else b""
    return Node(
        os.path.relpath(path, below or "/"), status.st_mode, (status.st_uid, status.st_gid), content
    )


def _content(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        return file.read(MAX_SIZE)


def add_nodes(
    batch: SyscallBatch,
    step: str,
    directory: str,
    nodes: Iterable[Node],
    status_of: Callable[[str], os.stat_result],
) -> None:
    """Append creating the lower layer ``directory`` with these nodes.

    ``status_of`` returns the attributes of a directory in the layers below, which its copy in this
    layer hides. Those of the root directory come from the layers above.
    """
    batch.add(step, "mkdirat", -1, os.fsencode(directory), 0o755)
    made: dict[str, os.stat_result] = {}
    for node in nodes:
        for parent in _parents(node.path):
            if parent not in made:
                made[parent] = status = status_of(parent)
                _add_directory(batch, step, os.fsencode(f"{directory}/{parent}"), status)
        _add_node(batch, step, os.fsencode(f"{directory}/{node.path}"), node)
    for parent, status in made.items():  # creating a file in a directory has changed its times
        _add_times(batch, step, os.fsencode(f"{directory}/{parent}"), status)


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: end + 1]) for end in range(len(parts))]


def _add_directory(batch: SyscallBatch, step: str, name: bytes, status: os.stat_result) -> None:
    mode = stat.S_IMODE(status.st_mode)
    batch.add(step, "mkdirat", -1, name, mode)
    _add_attributes(batch, step, name, mode, (status.st_uid, status.st_gid))


def _add_times(batch: SyscallBatch, step: str, name: bytes, status: os.stat_result) -> None:
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
    """Append setting owner and mode, if creation has not set them.

    The umask of the batch is 0. chown(2) clears the set-ID bits, so the mode comes last.
    """
    is_own = owner == (os.geteuid(), os.getegid())
    if not is_own and userns.has_id("uid", owner[0]) and userns.has_id("gid", owner[1]):
        batch.add(step, "fchownat", -1, name, *owner, 0)
    if mode & _SET_ID:
        batch.add(step, "fchmodat", -1, name, mode)
