"""Requests to a process of this user through a socket in its directory, one at a time.

A request may be answered by ``error`` (text). What other processes send is untrusted: only those of
the same user are heard, and each has to be quick.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.linux import local_socket
from pytest_sandbox.runtime.protocol import Channel, Message, close_all

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

__all__ = ["RequestSocket", "ask"]


class RequestSocket:
    """The listening end at ``path``. ``answer`` gets a message and its descriptors, which are
    closed afterwards; it may raise :class:`SandboxError` and OSError. A client has ``timeout``
    seconds to send its request, and to take the answer.
    """

    def __init__(
        self, path: str, answer: Callable[[Message, list[int]], Message], *, timeout: float
    ) -> None:
        self._path = path
        self._timeout = timeout
        self._answer = answer
        self._listening = local_socket.listen(path)

    def fileno(self) -> int:
        """Return the descriptor that is readable when a client has connected."""
        return self._listening.fileno()

    def attend(self) -> None:
        """Accept a client, read its request, and answer it."""
        with suppress(OSError, EOFError, KeyError):  # the client has gone, or is none of ours
            connection, _address = self._listening.accept()
            with connection:
                if local_socket.is_peer_trusted(connection):
                    self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(self._timeout)
        channel = Channel(connection)
        message, fds = channel.receive()
        try:
            answer = self._answer(message, fds)
        except (OSError, SandboxError) as error:
            answer = {"op": "error", "text": str(error)}
        finally:
            close_all(fds)
        channel.send(answer)

    def close(self) -> None:
        """Close the socket, and remove it."""
        self._listening.close()
        with suppress(OSError):
            os.unlink(self._path)


def ask(
    path: str, message: Message, fds: Sequence[int] = (), *, timeout: float
) -> tuple[Message, list[int]]:
    """Send a request to the process that listens at ``path``; return its answer, with descriptors.

    Each step waits at most ``timeout`` seconds. Raises OSError or EOFError if the process has ended
    or does not answer.
    """
    channel = Channel(local_socket.connect(path, timeout))
    try:
        channel.send(message, fds)
        return channel.receive()
    finally:
        channel.close()
