"""Queries of containers to 127.0.0.11, by UDP and TCP, and their responses (linux/name_link.py).

What containers send is untrusted. Each event handles a few packets of one container, so that none
waits for another one's; a container has a limited number of TCP connections, and one that sends
something else than queries, or does not read, is ended.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from pytest_sandbox.launcher import dns_messages as dns
from pytest_sandbox.linux.name_link import Link, TcpServer, is_tcp, payload

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.launcher.event_loop import EventLoop

    #: It takes a query, and what to call with the response.
    Handler = Callable[[dns.Query, Callable[[bytes], None]], None]

__all__ = ["NameService"]

#: Packets of one container that are handled before those of the next.
_BURST: Final = 16
#: The longest query by TCP. Queries with one question have less than 300 bytes.
_LONGEST: Final = 4096
_LENGTH: Final = struct.Struct("!H")  # before each message by TCP (RFC 1035, section 4.2.2)
#: Connections of one container; a further one ends its oldest.
_MOST_OF_ONE: Final = 32
#: Connections of all containers.
_MOST: Final = 1024


class NameService:
    """The way of queries to ``handler``, and of its responses."""

    def __init__(self, loop: EventLoop, handler: Handler) -> None:
        self._loop, self._handler = loop, handler
        self._links: dict[int, Link] = {}
        self._connections: _Connections | None = None

    def add(self, number: int, link: Link) -> None:
        """Serve a container, under a number; instead of an earlier one."""
        self.remove(number)
        self._links[number] = link
        self._loop.watch(link.fileno(), select.EPOLLIN, partial(self._on_packets, number, link))

    def remove(self, number: int) -> None:
        """Stop serving a container."""
        if (link := self._links.pop(number, None)) is not None:
            self._loop.watch(link.fileno(), 0, lambda _events: None)
            try:
                threading.Thread(target=link.close).start()  # it takes some 10 ms
            except RuntimeError:  # a limit of the user's processes (RLIMIT_NPROC)
                link.close()

    def _on_packets(self, number: int, link: Link, _events: int) -> None:
        with suppress(OSError):  # it was closed: the handler may have removed the container
            for _ in range(_BURST):
                if (packet := link.receive()) is None:
                    return
                if not packet:
                    continue
                if is_tcp(packet):
                    self._deliver(number, packet)
                elif query := dns.parse(payload(packet)):
                    self._handler(query, partial(link.respond, packet))

    def _deliver(self, number: int, packet: bytes) -> None:
        if self._connections is None:
            self._connections = _Connections(self._loop, self._handler, self._send)
        self._connections.server.deliver(number, packet)

    def _send(self, number: int, packet: bytes) -> None:
        if (link := self._links.get(number)) is not None:
            link.send(packet)


class _Connections:
    """The TCP connections of all containers."""

    def __init__(
        self, loop: EventLoop, handler: Handler, send: Callable[[int, bytes], None]
    ) -> None:
        self._loop, self._handler, self._send = loop, handler, send
        self.server = TcpServer()
        #: Those of each container, the oldest first, and what has arrived of the next message.
        self._received: dict[int, dict[socket.socket, bytes]] = {}
        loop.watch(self.server.fileno(), select.EPOLLIN, self._on_packets)
        loop.watch(self.server.listening.fileno(), select.EPOLLIN, self._on_connection)

    def _on_packets(self, _events: int) -> None:
        for _ in range(_BURST):
            if (found := self.server.receive()) is None:
                return
            self._send(*found)

    def _on_connection(self, _events: int) -> None:
        try:
            made, (address, _port) = self.server.listening.accept()
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                self._end_oldest()
            return
        made.setblocking(False)
        number = self.server.number(address)
        received = self._received.setdefault(number, {})
        if len(received) >= _MOST_OF_ONE:
            self._end(number, next(iter(received)))
        elif sum(map(len, self._received.values())) >= _MOST:
            self._end_oldest()
        self._received.setdefault(number, {})[made] = b""
        self._loop.watch(made.fileno(), select.EPOLLIN, partial(self._on_bytes, number, made))

    def _end_oldest(self) -> None:
        """End the oldest connection of the container that has most."""
        if self._received:
            number = max(self._received, key=lambda one: len(self._received[one]))
            self._end(number, next(iter(self._received[number]), None))

    def _end(self, number: int, one: socket.socket | None) -> None:
        received = self._received.get(number, {})
        if one is not None and received.pop(one, None) is not None:
            self._loop.watch(one.fileno(), 0, lambda _events: None)
            one.close()
        if not received:
            self._received.pop(number, None)

    def _on_bytes(self, number: int, one: socket.socket, _events: int) -> None:
        try:
            data = one.recv(_LONGEST)
            if data:
                rest = self._handle(number, one, self._received[number][one] + data)
                if one in self._received.get(number, {}):
                    self._received[number][one] = rest
        except OSError:
            data = b""
        if not data:
            self._end(number, one)

    def _handle(self, number: int, one: socket.socket, data: bytes) -> bytes:
        """Handle the queries that have arrived, and return the rest.

        Raises OSError for anything else.
        """
        while len(data) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data)
            if length > _LONGEST:
                raise OSError(errno.EMSGSIZE, "too long for a query")
            if len(data) < _LENGTH.size + length:
                break
            query = dns.parse(data[_LENGTH.size : _LENGTH.size + length])
            if query is None:
                raise OSError(errno.EBADMSG, "not a query")
            self._handler(query, partial(self._respond, number, one))
            data = data[_LENGTH.size + length :]
        return data

    def _respond(self, number: int, one: socket.socket, response: bytes) -> None:
        whole = _LENGTH.pack(len(response)) + response
        try:
            sent = one.send(whole, socket.MSG_NOSIGNAL)
        except OSError:  # it was ended, or the program inside does not read
            sent = 0
        if sent < len(whole):
            self._end(number, one)
