"""The launcher's second pair of hands: owns the payloads' user namespace, makes their network namespaces ahead, lets go of what is dead.

A network namespace has to be made by a process inside the user namespace that is to own it, and the last descriptor of a mount namespace
pays for freeing its layer: both take time that nobody should wait for, so both happen here, in a process of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
from typing import NoReturn

from pytest_sandbox.channel import Channel, close_all
from pytest_sandbox.linux import namespaces, network, process
from pytest_sandbox.linux import syscall as sc

__all__ = ["Keeper"]


class Keeper:
    """The launcher's end."""

    def __init__(self) -> None:
        """Start the process; ``user_fd`` is -1 where this kernel or its settings allow no user namespace."""
        self.channel, theirs = Channel.pair()
        self.user_fd = -1
        self._asked = False
        try:
            self._start(sc.CLONE_NEWUSER, theirs)
            namespaces.map_identity(self.pid)
            self.user_fd = namespaces.open_of(self.pid, "user")
        except OSError:  # no user namespaces here: the payloads keep docker's default protection, which needs none
            self._start(0, theirs)
        theirs.close()
        self.channel.send({"op": "go"})
        self.ask()

    def _start(self, flags: int, theirs: Channel) -> None:
        self.pid, pidfd = sc.clone3(flags)
        if not self.pid:
            _run(theirs)
        os.close(pidfd)

    def ask(self) -> None:
        """Ask for the next network namespace, unless one is under way."""
        if not self._asked:
            self.channel.send({"op": "network"})
            self._asked = True

    def take_network(self) -> int:
        """Return the next network namespace's descriptor, and have another one made."""
        self.ask()
        answer, fds = self.channel.receive()
        self._asked = False
        self.ask()
        if not fds:
            raise OSError(answer["errno"], answer["reason"])
        return fds[0]

    def drop(self, fds: list[int], folder: str | None = None) -> None:
        """Let go of descriptors, and remove a folder after it, in the keeper's time."""
        self.channel.send({"op": "drop", "folder": folder}, fds)
        close_all(fds)


def _run(channel: Channel) -> NoReturn:
    process.die_with_parent()
    os.setsid()
    process.close_others({channel.fileno()})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        while True:
            message, fds = channel.receive()
            _do(channel, message["op"], message.get("folder"), fds)
    except (EOFError, OSError):
        os._exit(0)


def _do(channel: Channel, what: str, folder: str | None, fds: list[int]) -> None:
    if what == "network":
        try:
            network.make_network()
            fd = namespaces.open_of(os.getpid(), "net")
        except OSError as error:
            channel.send({"op": "failed", "errno": error.errno, "reason": f"make a network namespace: {error.strerror}"})
            return
        channel.send({"op": "network"}, [fd])
        close_all([fd])
    elif what == "drop":
        close_all(fds)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
