"""The layer remover: a process that frees the layers and mounts of containers that have ended.

The kernel frees them when their last descriptor is closed, which takes a while for many files; a
layer on disk is a directory to be removed. The launcher sends both here, and never waits. If the
launcher ends first, this process is killed, and frees them while it exits.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.launcher import helper
from pytest_sandbox.runtime.protocol import (
    Channel,
    LostDescriptorsError,
    close_all,
    packed,
    rights_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LayerRemover"]


class LayerRemover:
    """The launcher's end of the socket; the process starts with the first layer."""

    def __init__(self) -> None:
        self._channel: Channel | None = None

    def free(self, fds: Sequence[int], directory: str | None) -> None:
        """Have descriptors closed and a directory removed.

        The caller's process does both itself if the helper has ended or its socket is full.
        """
        if self._channel is None:
            self._channel = helper.start(_serve)
        frame = packed({"directory": directory}, len(fds))
        sent = 0
        with suppress(OSError):
            sent = self._channel.socket.sendmsg(
                [frame], rights_of(fds), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
            )
        if 0 < sent < len(frame):
            self._channel.socket.sendall(memoryview(frame)[sent:], socket.MSG_NOSIGNAL)
        close_all(fds)
        if not sent and directory is not None:
            _remove(directory)


def _serve(channel: Channel) -> None:
    while True:
        try:
            message, fds = channel.receive()
        except LostDescriptorsError as error:
            message, fds = error.message, []
        close_all(fds)
        if message["directory"] is not None:
            _remove(message["directory"])


def _remove(directory: str) -> None:
    from pytest_sandbox.linux.removal import remove_tree  # only layers on disk need it

    with suppress(Exception):  # the end of the session removes the rest
        remove_tree(directory)
