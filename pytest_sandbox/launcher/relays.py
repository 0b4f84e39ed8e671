"""The relays: processes that pass traffic of containers on, started as the client asks for them."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from pytest_sandbox.launcher import helper
from pytest_sandbox.linux import process

if TYPE_CHECKING:
    from pytest_sandbox.runtime.protocol import Channel

__all__ = ["Relays"]

#: The module of each kind, which has a function ``serve``. It is imported before the first relay of
#: the kind is forked: a launcher without networks does not wait for it, and a later relay neither.
_MODULES = {
    "ports": "port_relay",
    "connections": "egress",
    "frames": "frame_relay",
    "capture": "frame_capture",
    "names": "name_server",
}


class Relays:
    """The launcher's side: it starts relays, and reaps those that have ended."""

    def __init__(self) -> None:
        self._pids: list[int] = []

    def start(self, kind: str) -> Channel:
        """Start a relay; return the client's end of its socket."""
        self._pids = [pid for pid in self._pids if not os.waitpid(pid, os.WNOHANG)[0]]
        module = import_module(f"pytest_sandbox.launcher.{_MODULES[kind]}")

        def serve(channel: Channel) -> None:
            module.serve(channel)
            # Before the client's socket, whose end tells the client that its ports are free.
            process.close_others({channel.fileno()})

        pid, channel = helper.fork(serve)
        self._pids.append(pid)
        return channel
