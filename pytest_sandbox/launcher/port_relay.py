"""The relay of published ports: a process for each container that publishes some.

It has the listening sockets of the host, which the client has bound, and is in the container's
network namespace, where it connects. So the host's network needs no rule, and when the process ends
nothing is left. It passes bytes on and reads none of them.

The client sends, with descriptors, and gets ``ready``, or ``failed`` (errno, reason):

===========  =====================================================================================
``publish``  ports, addresses + [one socket for each port, then others to hold open]
``enter``    [a pidfd of init]: connect in the network of this init from now on
===========  =====================================================================================

It ends when the client shuts down its end of the socket, or with the launcher.
"""

from __future__ import annotations

import errno
import resource
import select
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.runtime.protocol import close_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.runtime.protocol import Channel, Message

__all__ = ["serve"]

_CHUNK = 1 << 18
_MAX_DATAGRAM = 1 << 16
#: Descriptors that are not connections; each connection takes two.
_OTHER_DESCRIPTORS = 512
#: Peers of a UDP port: their answers are sent back as long as they are among the latest.
_MAX_PEERS = 256
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # struct linger: close(2) sends RST (socket(7))


def serve(channel: Channel) -> None:
    """Serve until the client closes its end."""
    _Relay(channel).serve()


class _Relay:
    """The loop of the process: a handler for each descriptor."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._held: list[int] = []
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        #: Connections that may still be accepted.
        self.room = max(1, (hard - _OTHER_DESCRIPTORS) // 2)

    def serve(self) -> None:
        self.watch(self._channel.fileno(), select.EPOLLIN, lambda _events: None)
        while True:
            for fd, events in self._poll.poll():
                if fd == self._channel.fileno():
                    if not self._receive():
                        return
                elif handler := self._handlers.get(fd):
                    handler(events)

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Call ``handler`` for these events of epoll(7); for none, forget the descriptor."""
        if not events:
            if self._handlers.pop(fd, None) is not None:
                self._poll.unregister(fd)
        elif fd in self._handlers:
            self._poll.modify(fd, events)
        else:
            self._poll.register(fd, events)
            self._handlers[fd] = handler

    def _receive(self) -> bool:
        """Handle a message of the client; return False once it has closed its end."""
        try:
            message, fds = self._channel.receive()
        except EOFError:
            return False
        answer: Message = {"op": "ready"}
        try:
            getattr(self, f"_do_{message['op']}")(message, fds)
        except OSError as error:
            answer = {"op": "failed", "errno": error.errno, "reason": error.strerror}
        with suppress(BrokenPipeError, ConnectionResetError):
            self._channel.send(answer)
        return True

    def _do_enter(self, _message: Message, fds: list[int]) -> None:
        try:
            # As the launcher, this process is in the user namespace that containers are built in.
            sc.setns(fds[0], sc.CLONE_NEWNET)
        finally:
            close_all(fds)

    def _do_publish(self, message: Message, fds: list[int]) -> None:
        addresses = message["addresses"]
        for port, fd in zip(message["ports"], fds, strict=False):
            made = socket.socket(fileno=fd)
            made.setblocking(False)
            kind = _TcpPort if made.type == socket.SOCK_STREAM else _UdpPort
            self.watch(fd, select.EPOLLIN, kind(self, made, addresses, port).accept)
        self._held = fds[len(message["ports"]) :]


class _TcpPort:
    """A listening socket of the host, and the port inside to which its connections go."""

    def __init__(
        self, relay: _Relay, listening: socket.socket, addresses: list[str], port: int
    ) -> None:
        self._relay, self._listening = relay, listening
        self._targets = [(address, port) for address in addresses]

    def accept(self, _events: int) -> None:
        with suppress(OSError):  # the peer has closed it meanwhile
            outer, _address = self._listening.accept()
            if self._relay.room <= 0:
                _reset(outer)
                return
            self._relay.room -= 1
            _Connection(self._relay, outer, list(self._targets)).connect()


class _Direction:
    """The bytes from one socket to another, and those that the other does not take yet."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source, self.target = source, target
        self.pending = memoryview(b"")
        self.has_ended = False
        self.is_shut = False

    def move(self) -> None:
        """Move what is available. Raises OSError if a side is gone."""
        with suppress(BlockingIOError):
            if not self.pending and not self.has_ended:
                self.pending = memoryview(self.source.recv(_CHUNK))
                self.has_ended = not self.pending
            if self.pending:
                self.pending = self.pending[self.target.send(self.pending, socket.MSG_NOSIGNAL) :]
        if self.has_ended and not self.pending and not self.is_shut:
            self.is_shut = True
            self.target.shutdown(socket.SHUT_WR)

    def wants(self, one: socket.socket) -> int:
        """Return the events of a socket for which this direction waits."""
        if self.pending:
            return select.EPOLLOUT if one is self.target else 0
        return select.EPOLLIN if one is self.source and not self.has_ended else 0


class _Connection:
    """A connection of the host (outer), and the one inside (inner)."""

    def __init__(self, relay: _Relay, outer: socket.socket, targets: list[tuple[str, int]]) -> None:
        self._relay, self._outer, self._targets = relay, outer, targets
        outer.setblocking(False)
        outer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connect(self) -> None:
        """Connect to the next address inside; without one, reset the outer connection."""
        while self._targets:
            address, port = self._targets.pop(0)
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            self._inner = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            if self._inner.connect_ex((address, port)) in {0, errno.EINPROGRESS}:
                self._relay.watch(self._inner.fileno(), select.EPOLLOUT, self._on_connected)
                return
            self._inner.close()
        self._relay.room += 1
        _reset(self._outer)

    def _on_connected(self, _events: int) -> None:
        self._relay.watch(self._inner.fileno(), 0, self._on_connected)
        if self._inner.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._inner.close()
            self.connect()
            return
        self._inner.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._directions = (
            _Direction(self._outer, self._inner),
            _Direction(self._inner, self._outer),
        )
        self._watch()

    def _on_event(self, _events: int) -> None:
        try:
            for direction in self._directions:
                direction.move()
        except OSError:
            self._close(_reset)
            return
        if all(direction.is_shut for direction in self._directions):
            self._close(socket.socket.close)
        else:
            self._watch()

    def _watch(self) -> None:
        for one in (self._outer, self._inner):
            events = self._directions[0].wants(one) | self._directions[1].wants(one)
            self._relay.watch(one.fileno(), events, self._on_event)

    def _close(self, close: Callable[[socket.socket], None]) -> None:
        self._relay.room += 1
        for one in (self._outer, self._inner):
            self._relay.watch(one.fileno(), 0, self._on_event)
            close(one)


class _UdpPort:
    """A UDP socket of the host: each peer gets a socket inside, so that answers find it."""

    def __init__(
        self, relay: _Relay, outer: socket.socket, addresses: list[str], port: int
    ) -> None:
        self._relay, self._outer = relay, outer
        self._target = (addresses[0], port)
        self._peers: dict[tuple[Any, ...], socket.socket] = {}

    def accept(self, _events: int) -> None:
        with suppress(OSError):  # nobody listens inside, or the datagram is gone
            data, peer = self._outer.recvfrom(_MAX_DATAGRAM)
            inner = self._peers.pop(peer, None) or self._connected(peer)
            self._peers[peer] = inner  # the latest is the last
            inner.send(data)

    def _connected(self, peer: tuple[Any, ...]) -> socket.socket:
        if len(self._peers) >= _MAX_PEERS:
            oldest = self._peers.pop(next(iter(self._peers)))
            self._relay.watch(oldest.fileno(), 0, self.accept)
            oldest.close()
        inner = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        inner.connect(self._target)

        def answer(_events: int) -> None:
            with suppress(OSError):
                self._outer.sendto(inner.recv(_MAX_DATAGRAM), peer)

        self._relay.watch(inner.fileno(), select.EPOLLIN, answer)
        return inner


def _reset(one: socket.socket) -> None:
    """Close a connection so that its peer gets ECONNRESET."""
    with suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
    one.close()
