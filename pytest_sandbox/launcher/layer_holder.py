"""The layer holder: layers of containers that were committed, each mounted in a mount namespace
that nobody else sees.

A layer in memory is gone with the last mount of it, and a mount cannot be cloned across namespaces:
so a small process holds them, and clones one for each container that is to lie on it. The protocol,
with the descriptors that travel along:

=========  =======================  ==========================
put        a detached mount         --
make       --                       the directory of a new tmpfs
clone      --                       a detached mount
drop       --                       no answer
=========  =======================  ==========================
"""

from __future__ import annotations

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
    """The launcher's end; the process starts with the first layer."""

    def __init__(self) -> None:
        self._channel: Channel | None = None

    def ask(self, what: str, key: str, fds: Sequence[int] = ()) -> list[int]:
        """Have something done with the layer ``key``; returns what descriptors come back. Raises
        OSError.
        """
        if self._channel is None:
            self._channel = helper.start(_serve)
        try:
            self._channel.send({"op": what, "key": key}, fds)
            if what == "drop":
                return []
            answer, found = self._channel.receive()
        except EOFError as error:
            raise OSError(
                32, "the process that holds committed layers has ended, and they with it"
            ) from error
        if answer["op"] == "failed":
            raise OSError(answer["errno"], answer["reason"])
        return found


def _serve(channel: Channel) -> None:
    sc.unshare(sc.CLONE_NEWNS)
    mounts.make_private()
    sc.mount("tmpfs", _BASE, "tmpfs", 0, "mode=700")
    while True:
        message, fds = channel.receive()
        _answer(channel, message["op"], f"{_BASE}/{message['key']}", fds)


def _answer(channel: Channel, what: str, path: str, fds: list[int]) -> None:
    found: list[int] = []
    try:
        found = _do(what, path, fds)
    except OSError as error:
        if what != "drop":
            channel.send({"op": "failed", "errno": error.errno, "reason": error.strerror})
    else:
        if what != "drop":
            channel.send({"op": what}, found)
    close_all([*found, *fds])


def _do(what: str, path: str, fds: list[int]) -> list[int]:
    if what == "drop":
        with suppress(FileNotFoundError):  # its client was interrupted before it was made
            sc.umount2(path, sc.MNT_DETACH)
            os.rmdir(path)
        return []
    if what == "clone":
        return [sc.open_tree(path, sc.OPEN_TREE_CLONE)]
    os.mkdir(path, 0o700)
    try:
        return _fill(what, path, fds)
    except OSError:
        os.rmdir(path)
        raise


def _fill(what: str, path: str, fds: list[int]) -> list[int]:
    if what == "put":
        sc.move_mount(fds[0], path)
        return []
    sc.mount("tmpfs", path, "tmpfs", sc.MS_NODEV, "mode=700")
    return [os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
