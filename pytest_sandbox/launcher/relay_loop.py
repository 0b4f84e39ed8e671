"""The loop of a process that relays connections between two networks, and its connections.

Bytes are passed on and not read. See port_relay.py (published ports) and egress.py (outgoing
connections).
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.launcher.event_loop import EventLoop, allow_most_descriptors

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.runtime.protocol import Channel

__all__ = ["Connection", "RelayLoop", "reset"]

#: Bytes that are read at once, and how many are while too much waits to be written.
_CHUNK, _SMALL_CHUNK = 1 << 18, 1 << 12
#: Bytes of all connections that wait to be written. No limit of a container counts them.
_MOST_WAITING = 64 << 20
_MOST_CONNECTIONS = 8192
#: Connections whose buffers the kernel may enlarge, to megabytes (tcp(7), tcp_rmem and tcp_wmem),
#: which no limit of a container counts either; and the size for later ones.
_MOST_LARGE, _SMALL_BUFFER = 64, 1 << 16
#: Descriptors that are not connections; each connection takes two.
_OTHER_DESCRIPTORS = 512
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # struct linger: close(2) sends RST (socket(7))


class RelayLoop(EventLoop):
    """The loop of a process that relays connections."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        #: Connections that may still be accepted.
        most = (allow_most_descriptors() - _OTHER_DESCRIPTORS) // 2
        self.room = max(1, min(_MOST_CONNECTIONS, most))
        #: Connections that were accepted and have not ended.
        self.connections = 0
        #: Bytes in memory that were read and are not written yet.
        self.waiting = 0

    def limit_buffers(self, one: socket.socket) -> None:
        """Keep the buffers of a connection small if there are many connections."""
        if self.connections > _MOST_LARGE:
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                one.setsockopt(socket.SOL_SOCKET, option, _SMALL_BUFFER)


class _Direction:
    """The bytes from one socket to another, and those that the other does not take yet."""

    def __init__(self, relay: RelayLoop, source: socket.socket, target: socket.socket) -> None:
        self._relay = relay
        self.source, self.target = source, target
        self.pending = memoryview(b"")
        self._held = 0  # bytes that the relay counts as waiting
        self.has_ended = False
        self.is_shut = False

    def move(self) -> None:
        """Move what is available. Raises OSError if a side is gone."""
        with suppress(BlockingIOError):
            if not self.pending and not self.has_ended:
                chunk = _CHUNK if self._relay.waiting < _MOST_WAITING else _SMALL_CHUNK
                self.pending = memoryview(self.source.recv(chunk))
                self.has_ended = not self.pending
                self._hold(len(self.pending))
            if self.pending:
                self.pending = self.pending[self.target.send(self.pending, socket.MSG_NOSIGNAL) :]
                if not self.pending:
                    self._hold(0)
        if self.has_ended and not self.pending and not self.is_shut:
            self.is_shut = True
            self.target.shutdown(socket.SHUT_WR)

    def _hold(self, size: int) -> None:
        # The rest of what was read stays in memory as a whole.
        self._relay.waiting += size - self._held
        self._held = size

    def close(self) -> None:
        """Forget what is not written."""
        self.pending = memoryview(b"")
        self._hold(0)

    def wants(self, one: socket.socket) -> int:
        """Return the events of a socket for which this direction waits."""
        if self.pending:
            return select.EPOLLOUT if one is self.target else 0
        return select.EPOLLIN if one is self.source and not self.has_ended else 0


class Connection:
    """A connection that was accepted (outer), and the one that is made for it (inner).

    ``error`` is the errno of the last attempt to connect.
    """

    error = 0

    def __init__(
        self, relay: RelayLoop, outer: socket.socket, targets: list[tuple[str, int]]
    ) -> None:
        self.relay, self.outer, self._targets = relay, outer, targets
        outer.setblocking(False)
        outer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        relay.connections += 1
        relay.limit_buffers(outer)

    def connect(self) -> None:
        """Connect to the next address inside; without one, reset the outer connection."""
        while self._targets:
            address, port = self._targets.pop(0)
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            try:
                self.inner = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            except OSError as error:  # no descriptor is left
                self.error = error.errno or errno.EMFILE
                continue
            self.relay.limit_buffers(self.inner)
            self.error = self.inner.connect_ex((address, port))
            if self.error in {0, errno.EINPROGRESS}:
                self.relay.watch(self.inner.fileno(), select.EPOLLOUT, self._on_connected)
                return
            self.inner.close()
        self.fail()

    def fail(self) -> None:
        """Reset the outer connection, since no address can be connected to."""
        self._leave()
        reset(self.outer)

    def _leave(self) -> None:
        self.relay.room += 1
        self.relay.connections -= 1

    def _on_connected(self, _events: int) -> None:
        self.relay.watch(self.inner.fileno(), 0, self._on_connected)
        self.error = self.inner.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if self.error:
            self.inner.close()
            self.connect()
            return
        self.inner.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.start()

    def start(self) -> None:
        """Pass bytes on from now on."""
        self._directions = (
            _Direction(self.relay, self.outer, self.inner),
            _Direction(self.relay, self.inner, self.outer),
        )
        self._watch()

    def _on_event(self, _events: int) -> None:
        try:
            for direction in self._directions:
                direction.move()
        except OSError:
            self._close(reset)
            return
        if all(direction.is_shut for direction in self._directions):
            self._close(socket.socket.close)
        else:
            self._watch()

    def _watch(self) -> None:
        for one in (self.outer, self.inner):
            events = self._directions[0].wants(one) | self._directions[1].wants(one)
            self.relay.watch(one.fileno(), events, self._on_event)

    def _close(self, close: Callable[[socket.socket], None]) -> None:
        self._leave()
        for direction in self._directions:
            direction.close()
        for one in (self.outer, self.inner):
            self.relay.watch(one.fileno(), 0, self._on_event)
            close(one)


def reset(one: socket.socket) -> None:
    """Close a connection so that its peer gets ECONNRESET."""
    with suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
    one.close()
