"""A session's door: a socket in its folder, where other processes of the same user ask what lives, and for a way in.

===========  =========  ===================================================================================================
visitor asks            answer
===========  =========  ===================================================================================================
``list``     (stats)    ``list``: every container that somebody has, with what its client said about it, and its figures
``enter``    id         ``entered`` (plan, about) + [init's pidfd, a control channel to it]
``layer``    id         ``layer`` (points) + [the writable layer's folder]
===========  =========  ===================================================================================================

Nobody else gets in: the folder is this user's alone, and the kernel says who connects. A visitor never makes the launcher wait.
"""

from __future__ import annotations

import os
import select
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.channel import Channel, Message, close_all
from pytest_sandbox.linux import local_socket

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NAME", "Door"]

NAME = "door"
_PATIENCE = 1.0  # for the rest of a message that has begun


class Door:
    """The listening socket in ``folder``, which is made and removed with it, and those who have come in."""

    def __init__(self, folder: str, poll: select.poll) -> None:
        os.mkdir(folder, 0o700)
        self._folder = folder
        self._poll = poll
        self._listening = local_socket.listen(os.path.join(folder, NAME))
        self._visitors: dict[int, Channel] = {}
        poll.register(self._listening, select.POLLIN)

    def has(self, fd: int) -> bool:
        """Whether what poll(2) reported is the door's."""
        return fd == self._listening.fileno() or fd in self._visitors

    def attend(self, fd: int, answer: Callable[[Message], tuple[Message, list[int]]]) -> None:
        """Let a visitor in, or answer one; the descriptors of an answer are closed here once they are sent."""
        if fd == self._listening.fileno():
            self._welcome()
            return
        visitor = self._visitors.pop(fd)
        self._poll.unregister(fd)
        with suppress(OSError, EOFError, ValueError, LookupError, TypeError):  # whoever it was has gone, or talks nonsense
            message, fds = visitor.receive()
            close_all(fds)
            reply, opened = answer(message)
            try:
                visitor.send(reply, opened)
            finally:
                close_all(opened)
        visitor.close()

    def _welcome(self) -> None:
        with suppress(OSError):
            connection, _address = self._listening.accept()
            if not local_socket.is_ours(connection):
                connection.close()
                return
            connection.settimeout(_PATIENCE)
            self._visitors[connection.fileno()] = Channel(connection)
            self._poll.register(connection, select.POLLIN)

    def close(self) -> None:
        """Take the door away."""
        self._listening.close()
        shutil.rmtree(self._folder, ignore_errors=True)
