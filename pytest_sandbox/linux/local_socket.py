"""Sockets in a directory, and who is at the other end (unix(7))."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_sandbox.linux import process

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["connect", "is_ours", "listen", "set_timeouts"]

_BACKLOG = 16
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid


def listen(path: str) -> socket.socket:
    """Make a socket at ``path``, whose directory only this user may enter, and listen there."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with _short(path) as name:
            made.bind(name)
            os.chmod(name, 0o600)
        made.listen(_BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


def connect(path: str, timeout: float) -> socket.socket:
    """Connect to the socket at ``path``, whose calls wait ``timeout`` seconds at most."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # With a timeout of Python's the socket does not block, and a full backlog is an error at once
    # (connect(2), EAGAIN).
    set_timeouts(made, timeout)
    try:
        with _short(path) as name:
            made.connect(name)
        made.settimeout(timeout)
    except BaseException:
        made.close()
        raise
    return made


def set_timeouts(blocking: socket.socket, seconds: float) -> None:
    """Let no call of a blocking socket wait longer: it fails with BlockingIOError then (socket(7),
    SO_RCVTIMEO).

    A timeout of Python's takes a poll(2) before each call.
    """
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        blocking.setsockopt(
            socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
        )


@contextmanager
def _short(path: str) -> Iterator[str]:
    """Give the path a short name: an address holds 108 bytes only."""
    fd = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{os.path.basename(path)}"
    finally:
        os.close(fd)


def is_ours(connection: socket.socket) -> bool:
    """Whether the process that connected is of this user, and in this process's PID namespace: not
    in a container that sees the directory.
    """
    pid, uid, _gid = _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    try:
        return uid == os.geteuid() and process.is_near(pid)
    except OSError:  # it has ended, or hides
        return False
