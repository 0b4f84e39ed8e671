"""Unix domain sockets with a path, and the credentials of the peer (unix(7))."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_sandbox.linux import process

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["connect", "is_peer_trusted", "listen", "set_timeouts"]

_BACKLOG = 16
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid


def listen(path: str) -> socket.socket:
    """Return a listening socket at ``path``, in a directory that only this user can enter."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with _short_path(path) as name:
            made.bind(name)
            os.chmod(name, 0o600)
        made.listen(_BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


def connect(path: str, timeout: float) -> socket.socket:
    """Return a connection to the socket ``path``; its calls wait at most ``timeout`` seconds."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Python's own timeout makes the socket non-blocking, and then connect(2) fails with EAGAIN if
    # the backlog is full.
    set_timeouts(made, timeout)
    try:
        with _short_path(path) as name:
            made.connect(name)
        made.settimeout(timeout)
    except BaseException:
        made.close()
        raise
    return made


def set_timeouts(blocking: socket.socket, seconds: float) -> None:
    """Set the timeouts of a blocking socket (socket(7), SO_RCVTIMEO and SO_SNDTIMEO).

    A call raises BlockingIOError after ``seconds``. Python's own timeout would need a poll(2)
    before each call.
    """
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        blocking.setsockopt(
            socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
        )


@contextmanager
def _short_path(path: str) -> Iterator[str]:
    """Yield a short path of a socket: sun_path has room for 108 bytes."""
    fd = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{os.path.basename(path)}"
    finally:
        os.close(fd)


def is_peer_trusted(connection: socket.socket) -> bool:
    """Return whether the peer is a process of this user in this PID namespace.

    A process in a container may see the directory of the socket too.
    """
    pid, uid, _gid = _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    try:
        return uid == os.geteuid() and process.is_in_own_pid_namespace(pid)
    except OSError:  # it has ended, or /proc hides it
        return False
