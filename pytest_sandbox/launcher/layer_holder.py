"""The layer holder: a process that keeps committed layers, mounted in a namespace of its own.

A layer in memory is gone with its last mount, and mounts cannot be cloned across mount namespaces.
So one process holds them, and clones the mount for each container that is based on a layer. The
requests, and the descriptors that travel with them:

===========  ================  =========================
op           with              answer
===========  ================  =========================
``put``      a detached mount  --
``make``     --                a new tmpfs's directory
``clone``    --                a detached mount
``release``  --                there is none
===========  ================  =========================
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.launcher import helper
from pytest_sandbox.linux import mounts
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.runtime.protocol import Channel, close_all

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LayerHolder"]

_BASE = mounts.STAGE


class LayerHolder:
    """The launcher's end of the socket; the process starts with the first layer."""

    def __init__(self) -> None:
        self._channel: Channel | None = None

    def ask(self, op: str, key: str, fds: Sequence[int] = ()) -> list[int]:
        """Send a request about the layer ``key``; return the descriptors of the answer, which the
        caller owns. Raises OSError.
        """
        if self._channel is None:
            self._channel = helper.start(_serve)
        try:
            self._channel.send({"op": op, "key": key}, fds)
            if op == "release":
                return []
            answer, received = self._channel.receive()
        except EOFError as error:
            reason = "the process that held the committed layers has ended: commit again"
            raise OSError(errno.EPIPE, reason) from error
        if answer["op"] == "failed":
            raise OSError(answer["errno"], answer["reason"])
        return received


def _serve(channel: Channel) -> None:
    sc.unshare(sc.CLONE_NEWNS)
    mounts.make_private()
    sc.mount("tmpfs", _BASE, "tmpfs", 0, "mode=700")
    while True:
        message, fds = channel.receive()
        _answer(channel, message["op"], f"{_BASE}/{message['key']}", fds)


def _answer(channel: Channel, op: str, path: str, fds: list[int]) -> None:
    created: list[int] = []
    try:
        created = _do(op, path, fds)
    except OSError as error:
        answer = {"op": "failed", "errno": error.errno, "reason": error.strerror}
    else:
        answer = {"op": op}
    if op != "release":
        channel.send(answer, created)
    close_all([*created, *fds])


def _do(op: str, path: str, fds: list[int]) -> list[int]:
    if op == "release":
        # The layer does not exist if the client was interrupted before it was made.
        with suppress(FileNotFoundError):
            sc.umount2(path, sc.MNT_DETACH)
            os.rmdir(path)
        return []
    if op == "clone":
        return [sc.open_tree(path, sc.OPEN_TREE_CLONE)]
    os.mkdir(path, 0o700)
    try:
        return _fill(op, path, fds)
    except OSError:
        os.rmdir(path)
        raise


def _fill(op: str, path: str, fds: list[int]) -> list[int]:
    if op == "put":
        sc.move_mount(fds[0], path)
        return []
    sc.mount("tmpfs", path, "tmpfs", sc.MS_NODEV, "mode=700")
    return [os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
