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
from typing import TYPE_CHECKING

from pytest_sandbox.errors import ContainerStopped, SandboxError
from pytest_sandbox.runtime import request_socket
from pytest_sandbox.runtime.protocol import Message, close_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.container.detached import Detached

__all__ = ["ask", "listen"]

_NAME = "socket"
#: Seconds for a client to send its request, which is small.
_RECEIVE_TIMEOUT = 5.0
#: Seconds for an answer: a commit copies the files of the container.
_ANSWER_TIMEOUT = 3600.0


def listen(
    directory: str, answer: Callable[[Message, list[int]], Message]
) -> request_socket.RequestSocket:
    """Return the supervisor's end, in the directory of its container."""
    path = os.path.join(directory, _NAME)
    return request_socket.RequestSocket(path, answer, timeout=_RECEIVE_TIMEOUT)


def ask(one: Detached, message: Message) -> Message:
    """Send a request to the supervisor of a container, and return the answer.

    Raises :class:`ContainerStopped` if the container ends meanwhile, and :class:`SandboxError` for
    an error that it reports.
    """
    path = os.path.join(one.directory, _NAME)
    try:
        answer, fds = request_socket.ask(path, message, timeout=_ANSWER_TIMEOUT)
    except (OSError, EOFError) as error:
        raise ContainerStopped(f"the container {one.id} is not running.") from error
    close_all(fds)
    if answer["op"] == "error":
        raise SandboxError(answer["text"])
    return answer
