"""A session's control socket: other processes of the user list its containers, and join them.

=========  =========  =============================================================================
request    with       answer
=========  =========  =============================================================================
``list``   stats      ``list``: the containers that are claimed, each with what its client told of
                      it (about) and, with stats, what it uses
``enter``  id         ``entered`` (spec, about, pid, joins, user_namespaces) + [init's pidfd, the
                      payloads' and the builder's user namespace]
``layer``  id         ``layer`` (points) + [the writable layer's directory]
=========  =========  =============================================================================

The socket is in a directory of mode 0700, and the kernel says who connects (SO_PEERCRED of
unix(7)): other users are refused. Sockets are non-blocking, and each client has a size limit and a
deadline, so that no client can delay the launcher.
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

#: The socket's name in the session's directory; other versions of this library use it, too.
NAME = "door"
#: Seconds from connecting to the last byte of the answer.
_CLIENT_TIMEOUT = 5.0
_MAX_REQUEST_BYTES = 1 << 16
_MAX_CLIENTS = 64

Answer = tuple[Message, list[int]]


class _Client:
    """One connection: the received part of its request, and the unsent part of its answer."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.deadline = time.monotonic() + _CLIENT_TIMEOUT
        self._request = bytearray()
        self._answer = b""
        self._fds: list[int] = []

    def read(self) -> Message | None:
        """Read without waiting; return the request once it is complete.

        Raises EOFError or OSError if the client has closed the connection.
        """
        piece = self.socket.recv(_MAX_REQUEST_BYTES)
        if not piece:
            raise EOFError("the client has closed the connection")
        self._request += piece
        if len(self._request) < HEADER_SIZE:
            return None
        length, count = unpacked(bytes(self._request[:HEADER_SIZE]), _MAX_REQUEST_BYTES)
        end = HEADER_SIZE + length
        if count or len(self._request) > end:
            raise InvalidMessageError("a request has no descriptors, and no other one follows it")
        is_complete = len(self._request) == end
        return message_of(bytes(self._request[HEADER_SIZE:])) if is_complete else None

    def answer(self, message: Message, fds: list[int]) -> None:
        """Set the answer; its descriptors are closed once they are sent, or with the client."""
        self._answer, self._fds = packed(message, len(fds)), fds

    @property
    def is_answering(self) -> bool:
        return bool(self._answer)

    def write(self) -> bool:
        """Send what the socket takes without waiting; return whether all is sent.

        Raises OSError if the client has closed the connection.
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
    """The listening socket in ``directory``, which is created and removed with it, and its clients.

    All descriptors are in the launcher's ``poll``.
    """

    def __init__(self, directory: str, poll: select.poll) -> None:
        os.mkdir(directory, 0o700)
        self._directory = directory
        self._poll = poll
        self._listening = local_socket.listen(os.path.join(directory, NAME))
        self._clients: dict[int, _Client] = {}
        poll.register(self._listening, select.POLLIN)

    def has(self, fd: int) -> bool:
        """Return whether a descriptor is the control socket's or one of its clients'."""
        return fd == self._listening.fileno() or fd in self._clients

    def attend(self, fd: int, answer: Callable[[Message], Answer]) -> None:
        """Accept a client, read from one or write to one, without waiting."""
        if fd == self._listening.fileno():
            self._accept()
            return
        client = self._clients[fd]
        try:
            if self._advance(client, answer):
                self._drop(fd)
        except Exception:  # noqa: BLE001 - it has gone, or sent something that is not a request
            self._drop(fd)

    def _advance(self, client: _Client, answer: Callable[[Message], Answer]) -> bool:
        """Read the request or send the answer; return whether all is sent."""
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
            if len(self._clients) >= _MAX_CLIENTS or not local_socket.is_peer_trusted(connection):
                connection.close()
                return
            self._clients[connection.fileno()] = _Client(connection)
            self._poll.register(connection, select.POLLIN)

    def expire(self) -> float | None:
        """Disconnect the clients that are past their deadline; return the seconds until the next
        deadline, None without clients.
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
