"""Requests to the supervisor of a detached container: a socket in its directory.

==============  ======================================  =====================
request         with                                    answer
==============  ======================================  =====================
``commit``      name, message, author, changes          ``committed`` (image)
==============  ======================================  =====================

Any request may be answered by ``error`` (text). Only processes of the same user can connect.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.errors import ContainerStopped, SandboxError
from pytest_sandbox.linux import local_socket
from pytest_sandbox.runtime.protocol import Channel, Message, close_all

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from pytest_sandbox.container.detached import Detached

__all__ = ["RequestSocket", "ask"]

_NAME = "socket"
#: Seconds for a client to send its request, which is small.
_RECEIVE_TIMEOUT = 5.0
#: Seconds for an answer: a commit copies the files of the container.
_ANSWER_TIMEOUT = 3600.0


class RequestSocket:
    """The supervisor's end, in the directory of its container."""

    def __init__(self, directory: str, answer: Callable[[Message], Message]) -> None:
        self._path = os.path.join(directory, _NAME)
        self._answer = answer
        self._listening = local_socket.listen(self._path)

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
        connection.settimeout(_RECEIVE_TIMEOUT)
        channel = Channel(connection)
        message, fds = channel.receive()
        close_all(fds)
        try:
            answer = self._answer(message)
        except (OSError, SandboxError) as error:
            answer = {"op": "error", "text": str(error)}
        channel.send(answer)

    def close(self) -> None:
        """Close the socket, and remove it."""
        self._listening.close()
        with suppress(OSError):
            os.unlink(self._path)


def ask(one: Detached, message: Message) -> Message:
    """Send a request to the supervisor of a container, and return the answer.

    Raises :class:`ContainerStopped` if the container ends meanwhile, and :class:`SandboxError` for
    an error that it reports.
    """
    try:
        channel = Channel(local_socket.connect(os.path.join(one.directory, _NAME), _ANSWER_TIMEOUT))
        try:
            channel.send(message)
            answer, fds = channel.receive()
        finally:
            channel.close()
    except (OSError, EOFError) as error:
        raise ContainerStopped(f"the container {one.id} is not running.") from error
    close_all(fds)
    if answer["op"] == "error":
        raise SandboxError(answer["text"])
    return answer
