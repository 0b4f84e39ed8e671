"""The relay of published ports: a process for each container that publishes some.

It has the listening sockets of the host, which the client has bound, and is in the container's
network namespace, where it connects. So the host's network needs no rule, and when the process ends
nothing is left. It passes bytes on and reads none of them.

The client sends, with descriptors, and gets ``ready``, or ``failed`` (errno, reason):

===========  =====================================================================================
``publish``  ports, addresses + [a pidfd of init, in whose network to connect; one socket for each
             port, then others to hold open]
``enter``    [a pidfd of init]: connect in the network of this init from now on
===========  =====================================================================================

It ends when the client shuts down its end of the socket, or with the launcher.
"""

from __future__ import annotations

import select
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pytest_sandbox.launcher.relay_loop import Connection, RelayLoop, reset
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.runtime.protocol import close_all

if TYPE_CHECKING:
    from pytest_sandbox.runtime.protocol import Channel, Message

__all__ = ["serve"]

_MAX_DATAGRAM = 1 << 16
#: Peers of a UDP port: their answers are sent back as long as they are among the latest.
_MAX_PEERS = 256


def serve(channel: Channel) -> None:
    """Serve until the client closes its end."""
    _PortRelay(channel).serve()


class _PortRelay(RelayLoop):
    """The loop of the relay."""

    _held: tuple[int, ...] = ()

    def _do_enter(self, _message: Message, fds: list[int]) -> None:
        try:
            # As the launcher, this process is in the user namespace that containers are built in.
            sc.setns(fds[0], sc.CLONE_NEWNET)
        finally:
            close_all(fds)

    def _do_publish(self, message: Message, fds: list[int]) -> None:
        self._do_enter(message, [fds.pop(0)])
        addresses = message["addresses"]
        for port, fd in zip(message["ports"], fds, strict=False):
            made = socket.socket(fileno=fd)
            made.setblocking(False)
            kind = _TcpPort if made.type == socket.SOCK_STREAM else _UdpPort
            self.watch(fd, select.EPOLLIN, kind(self, made, addresses, port).accept)
        self._held = tuple(fds[len(message["ports"]) :])


class _TcpPort:
    """A listening socket of the host, and the port inside to which its connections go."""

    def __init__(
        self, relay: _PortRelay, listening: socket.socket, addresses: list[str], port: int
    ) -> None:
        self._relay, self._listening = relay, listening
        self._targets = [(address, port) for address in addresses]

    def accept(self, _events: int) -> None:
        with suppress(OSError):  # the peer has closed it meanwhile
            outer, _address = self._listening.accept()
            if self._relay.room <= 0:
                reset(outer)
                return
            self._relay.room -= 1
            Connection(self._relay, outer, list(self._targets)).connect()


class _UdpPort:
    """A UDP socket of the host: each peer gets a socket inside, so that answers find it."""

    def __init__(
        self, relay: _PortRelay, outer: socket.socket, addresses: list[str], port: int
    ) -> None:
        self._relay, self._outer = relay, outer
        self._target = (addresses[0], port)
        self._peers: dict[tuple[Any, ...], socket.socket] = {}

    def accept(self, _events: int) -> None:
        with suppress(OSError):  # nobody listens inside, or the datagram is gone
            data, peer = self._outer.recvfrom(_MAX_DATAGRAM)
            inner = self._peers.pop(peer, None) or self._connected(peer)
            if inner is not None:
                self._peers[peer] = inner  # the latest is the last
                inner.send(data)

    def _connected(self, peer: tuple[Any, ...]) -> socket.socket | None:
        """Return a socket for a new peer; None if there is no descriptor for it."""
        if self._peers and (len(self._peers) >= _MAX_PEERS or self._relay.room <= 0):
            self._forget(next(iter(self._peers)))
        if self._relay.room <= 0:
            return None
        inner = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        inner.connect(self._target)

        def answer(_events: int) -> None:
            with suppress(OSError):
                self._outer.sendto(inner.recv(_MAX_DATAGRAM), peer)

        self._relay.watch(inner.fileno(), select.EPOLLIN, answer)
        self._relay.room -= 1
        return inner

    def _forget(self, peer: tuple[Any, ...]) -> None:
        oldest = self._peers.pop(peer)
        self._relay.watch(oldest.fileno(), 0, self.accept)
        oldest.close()
        self._relay.room += 1
