"""A session's control socket, where other processes of the same user ask what lives, and for a way
in.

===========  =========  ===================================================================================================
client asks             answer
===========  =========  ===================================================================================================
``list``     (stats)    ``list``: every container that somebody has, with what its client said about it, and its figures
``enter``    id         ``entered`` (spec, about) + [init's pidfd, the payloads' and the builder's user namespace]
``layer``    id         ``layer`` (points) + [the writable layer's directory]
===========  =========  ===================================================================================================

Nobody else connects: the directory is this user's alone, and the kernel says who connects
(SO_PEERCRED of unix(7)). Sockets are non-blocking, and each client has a buffer of a limited size
and a deadline, so that no client delays the launcher.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.linux import local_socket
from pytest_sandbox.runtime.protocol import (
    HEADER_SIZE,
    InvalidMessageError,
    Message,
    close_all,
    message_of,
    packed,
    rights_of,
    unpacked,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NAME", "ControlSocket"]

#: The socket's name in the session's directory: as in earlier versions, so that either finds the
#: other's sessions.
NAME = "door"
#: Seconds from connecting to the last byte of the answer.
_PATIENCE = 5.0
_MOST_BYTES = 1 << 16
_MOST_CLIENTS = 64

Answer = tuple[Message, list[int]]


class _Client:
    """One connection: what has come of its request, and what is left to send of the answer."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.deadline = time.monotonic() + _PATIENCE
        self._request = bytearray()
        self._answer = b""
        self._fds: list[int] = []

    def read(self) -> Message | None:
        """Read what is there; return the request once it is whole. Raises EOFError or OSError where
        there will be none.
        """
        piece = self.socket.recv(_MOST_BYTES)
        if not piece:
            raise EOFError("the client has gone")
        self._request += piece
        if len(self._request) < HEADER_SIZE:
            return None
        length, count = unpacked(bytes(self._request[:HEADER_SIZE]), _MOST_BYTES)
        if count or len(self._request) > HEADER_SIZE + length:
            raise InvalidMessageError("a request has no descriptors, and nothing follows it")
        return (
            message_of(bytes(self._request[HEADER_SIZE:]))
            if len(self._request) == HEADER_SIZE + length
            else None
        )

    def answer(self, message: Message, fds: list[int]) -> None:
        """Take an answer to be sent; its descriptors are closed with the client, or once they are
        sent.
        """
        self._answer, self._fds = packed(message, len(fds)), fds

    @property
    def is_answering(self) -> bool:
        return bool(self._answer)

    def write(self) -> bool:
        """Send what the socket takes now; return whether all is sent. Raises OSError where the
        client has gone.
        """
        with suppress(BlockingIOError):
            sent = self.socket.sendmsg([self._answer], rights_of(self._fds), socket.MSG_NOSIGNAL)
            self._close_fds()
            self._answer = self._answer[sent:]
        return not self._answer

    def _close_fds(self) -> None:
        fds, self._fds = self._fds, []
        close_all(fds)

    def close(self) -> None:
        self._close_fds()
        self.socket.close()


class ControlSocket:
    """The listening socket in ``directory``, which is made and removed with it, and its clients,
    all of them in the launcher's ``poll``.
    """

    def __init__(self, directory: str, poll: select.poll) -> None:
        os.mkdir(directory, 0o700)
        self._directory = directory
        self._poll = poll
        self._listening = local_socket.listen(os.path.join(directory, NAME))
        self._clients: dict[int, _Client] = {}
        poll.register(self._listening, select.POLLIN)

    def has(self, fd: int) -> bool:
        """Whether what poll(2) reported is the control socket's."""
        return fd == self._listening.fileno() or fd in self._clients

    def attend(self, fd: int, answer: Callable[[Message], Answer]) -> None:
        """Accept a client, read of its request or send of its answer, whatever can be done without
        waiting.
        """
        if fd == self._listening.fileno():
            self._accept()
            return
        client = self._clients[fd]
        try:
            if self._advance(client, answer):
                self._drop(fd)
        except Exception:  # noqa: BLE001 - a client that has gone or sends nonsense is its own loss
            self._drop(fd)

    def _advance(self, client: _Client, answer: Callable[[Message], Answer]) -> bool:
        """Return whether the client has its answer."""
        if not client.is_answering:
            request = client.read()
            if request is None:
                return False
            client.answer(*answer(request))
            self._poll.modify(client.socket, select.POLLOUT)
        return client.write()

    def _accept(self) -> None:
        with suppress(OSError):
            connection, _address = self._listening.accept()
            if len(self._clients) >= _MOST_CLIENTS or not local_socket.is_peer_trusted(connection):
                connection.close()
                return
            self._clients[connection.fileno()] = _Client(connection)
            self._poll.register(connection, select.POLLIN)

    def expire(self) -> float | None:
        """Drop the clients whose time is over; return the seconds until the next one's is, None
        without clients.
        """
        now = time.monotonic()
        for fd in [fd for fd, client in self._clients.items() if client.deadline <= now]:
            self._drop(fd)
        return min((client.deadline - now for client in self._clients.values()), default=None)

    def _drop(self, fd: int) -> None:
        self._poll.unregister(fd)
        self._clients.pop(fd).close()

    def close(self) -> None:
        """Close all connections, and remove the socket with its directory."""
        for fd in list(self._clients):
            self._drop(fd)
        self._listening.close()
        shutil.rmtree(self._directory, ignore_errors=True)
