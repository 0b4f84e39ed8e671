"""The forwarder of outgoing connections: a process for each container whose ``network`` limits
them.

It is the container's gateway (linux/gateway.py) and name server (name_service.py). Each name that
is looked up gets an address of 198.18.0.0/15, which stands for the name; the program inside
connects to it, and the forwarder resolves the name and connects on the host. Bytes are passed on as
they are, so TLS is end to end.

The client sends, with descriptors, and gets ``ready``, or ``failed`` (errno, reason):

============  ====================================================================================
``open``      destinations, proxy, no_proxy + [a pidfd of init]
``enter``     [a pidfd of init]: be the gateway of this init from now on
``attempts``  forget: count from zero now; the answer has ``attempts``, and ``left_out``
============  ====================================================================================

It ends when the client shuts down its end of the socket, or with the launcher.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from pytest_sandbox.launcher import dns_messages as dns
from pytest_sandbox.launcher.egress_addresses import is_of_host, is_reserved
from pytest_sandbox.launcher.egress_attempts import Attempts
from pytest_sandbox.launcher.name_service import NameService
from pytest_sandbox.launcher.proxy import Proxy
from pytest_sandbox.launcher.relay_loop import Connection, RelayLoop, reset
from pytest_sandbox.launcher.resolver import Resolver
from pytest_sandbox.linux.gateway import Gateway, Packet
from pytest_sandbox.runtime.protocol import close_all
from pytest_sandbox.settings.destinations import Destinations

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.runtime.protocol import Channel, Message

    Respond = Callable[[bytes], None]

__all__ = ["serve"]

#: The number of the container for its name service.
_ONLY: Final = 0
#: The addresses that stand for names: 198.18.0.16 to 198.19.255.255.
_FIRST: Final = 0xC6120010
_END: Final = 0xC6140000
#: Listening sockets, one for each destination that was used.
_MOST_LISTENERS: Final = 4096
#: Packets that are handled before an answer: a program may send them without an end.
_MOST_PACKETS: Final = 1000
_NOT_ALLOWED: Final = "not allowed"
_RESOLVES_TO_HOST: Final = "its name resolves to an address of this host"
_LOOPBACK: Final = "an address of this host"
_ERRORS: Final = {
    socket.EAI_NONAME: "the name does not exist",
    socket.EAI_AGAIN: "no name server of the host answers",
}


def serve(channel: Channel) -> None:
    """Serve until the client closes its end."""
    _Forwarder(channel).serve()


class _Forwarder(RelayLoop):
    """The loop of the forwarder."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self.attempts = Attempts()
        self._listening: dict[tuple[str, int], socket.socket] = {}
        self._names: dict[str, str] = {}
        self._addresses: dict[str, str] = {}
        self._name_service = NameService(self, self._on_query)

    # -- the client's messages

    def _do_open(self, message: Message, fds: list[int]) -> None:
        self.destinations = Destinations.of(message["destinations"])
        self.proxy = Proxy.of(message["proxy"], message["no_proxy"])
        self._resolver = Resolver(self)
        self._enter(fds)

    def _do_enter(self, _message: Message, fds: list[int]) -> None:
        self._leave()
        self._enter(fds)

    def _enter(self, fds: list[int]) -> None:
        try:
            self._gateway = gateway = Gateway(fds[0])
        finally:
            close_all(fds)
        self.watch(gateway.packets.fileno(), select.EPOLLIN, self._on_packet)
        self._name_service.add(_ONLY, gateway.names)

    def _leave(self) -> None:
        """Close the gateway of an earlier init; connections that were made go on."""
        for made in self._listening.values():
            self.watch(made.fileno(), 0, self._on_packet)
            made.close()
        self.room += len(self._listening)
        self._listening.clear()
        self.watch(self._gateway.packets.fileno(), 0, self._on_packet)
        self._name_service.remove(_ONLY)
        self._gateway.close()

    def _do_attempts(self, message: Message, _fds: list[int]) -> Message:
        for _ in range(_MOST_PACKETS):  # what has just arrived
            if (packet := self._gateway.read()) is None:
                break
            self._decide(packet)
        found = self.attempts
        if message["forget"]:
            self.attempts = Attempts()
        return {"op": "attempts", "attempts": found.to_json(), "left_out": found.left_out}

    # -- names

    def _on_query(self, query: dns.Query, respond: Respond) -> None:
        if query.kind == dns.A:
            self._look_up(query, respond)
        elif query.kind == dns.PTR:
            name = self._names.get(dns.reverse_address(query.name))
            respond(dns.answer_or_no_name(query, None if name is None else dns.encode_name(name)))
        else:  # as a name that has addresses of IPv4 alone
            respond(dns.answer(query, dns.NO_ERROR))

    def _look_up(self, query: dns.Query, respond: Respond) -> None:
        """Answer with the address that stands for the name.

        A name that is not allowed has one, too, so that the attempt to connect tells the port. It
        is not looked up outside.
        """
        name = query.name
        if not self._is_known(name):
            self.attempts.add_name(name)
        elif not self.proxy.is_used_for(name):
            self._resolver.resolve(name, partial(self._on_looked_up, query, respond))
            return
        self._send_address(query, respond)

    def _is_known(self, name: str) -> bool:
        """Return whether any port of a name is allowed."""
        ports = {port for _host, port in (*self.destinations.exact, *self.destinations.wild)}
        return self.destinations.is_everything or any(
            self.destinations.allow(name, port) for port in ports
        )

    def _on_looked_up(
        self, query: dns.Query, respond: Respond, _addresses: list[str], error: int
    ) -> None:
        if not error:
            self._send_address(query, respond)
            return
        self.attempts.add(query.name, None, "dns", "", _explain(error))
        code = dns.NO_NAME if error == socket.EAI_NONAME else dns.SERVER_FAILURE
        respond(dns.answer(query, code))

    def _send_address(self, query: dns.Query, respond: Respond) -> None:
        address = self._addresses.get(query.name)
        if address is None:
            if _FIRST + len(self._names) >= _END:
                respond(dns.answer(query, dns.SERVER_FAILURE))
                return
            address = socket.inet_ntoa(struct.pack("!I", _FIRST + len(self._names)))
            self._addresses[query.name], self._names[address] = address, query.name
        respond(dns.answer(query, dns.NO_ERROR, socket.inet_aton(address)))

    # -- connections

    def _on_packet(self, _events: int) -> None:
        if (packet := self._gateway.read()) is not None:
            self._decide(packet)

    def _decide(self, packet: Packet) -> None:
        host = self._names.get(packet.address, packet.address)
        if packet.protocol == "udp":
            self._note(packet, host, "UDP is not forwarded")
        elif (self._place(packet)) in self._listening:
            return  # the kernel has delivered it
        elif not self.destinations.allow(host, packet.port):
            self._note(packet, host, _NOT_ALLOWED)
            self._gateway.refuse(packet)
        elif len(self._listening) >= _MOST_LISTENERS or self.room <= 0:
            self._note(packet, host, "too many destinations")
            self._gateway.refuse(packet)
        else:
            self._listen(packet)

    def _place(self, packet: Packet) -> tuple[str, int]:
        """Return the key of a listening socket: for "outside" there is one for each port."""
        return ("" if self.destinations.is_everything else packet.address), packet.port

    def _listen(self, packet: Packet) -> None:
        try:
            every = self.destinations.is_everything
            made = self._gateway.listen(packet, every_address=every)
        except OSError as error:
            self._note(packet, self._names.get(packet.address, packet.address), str(error.strerror))
            self._gateway.refuse(packet)
            return
        self.room -= 1
        self._listening[self._place(packet)] = made
        self.watch(made.fileno(), select.EPOLLIN, partial(self._accept, made))

    def _accept(self, listening: socket.socket, _events: int) -> None:
        with suppress(OSError):  # the peer has closed it meanwhile
            outer, _peer = listening.accept()
            if self.room <= 0:
                reset(outer)
                return
            self.room -= 1
            address, port = outer.getsockname()
            host = self._names.get(address)
            if host is None:
                self._connect_to(outer, address, port)
            elif self.proxy.is_used_for(host):
                self._resolver.resolve(
                    self.proxy.host, partial(self._on_resolved, outer, (host, port), True)
                )
            else:
                self._resolver.resolve(host, partial(self._on_resolved, outer, (host, port), False))

    def _connect_to(self, outer: socket.socket, address: str, port: int) -> None:
        # A host that routes packets to 127.0.0.1 (sysctl route_localnet) passes them on to here.
        is_allowed = self.destinations.lists(address, port) or not is_reserved(address)
        targets = [(address, port)] if is_allowed else []
        connection = _Outgoing(self, outer, targets, (address, port))
        connection.reason = "" if is_allowed else _LOOPBACK
        connection.connect()

    def _on_resolved(
        self,
        outer: socket.socket,
        target: tuple[str, int],
        proxied: bool,
        addresses: list[str],
        error: int,
    ) -> None:
        if proxied:
            targets = [(address, self.proxy.port) for address in addresses]
            connection: _Outgoing = _Proxied(self, outer, targets, target)
        else:
            targets = [(one, target[1]) for one in addresses if self._may_be(one, target[1])]
            connection = _Outgoing(self, outer, targets, target)
        if error:
            connection.reason = _explain(error)
        elif not targets:
            connection.reason = _RESOLVES_TO_HOST
        connection.connect()

    def _may_be(self, address: str, port: int) -> bool:
        """Return whether a name may lead to an address."""
        return self.destinations.lists(address, port) or not is_of_host(address)

    def _note(self, packet: Packet, host: str, reason: str) -> None:
        wanted = self.attempts.wants_program(host, packet.port)
        program = self._gateway.program(packet) if wanted else ""
        self.attempts.add(host, packet.port, packet.protocol, program, reason)


class _Outgoing(Connection):
    """A connection of the container to ``target``, a name or an address, and a port."""

    reason = ""

    def __init__(
        self,
        forwarder: _Forwarder,
        outer: socket.socket,
        targets: list[tuple[str, int]],
        target: tuple[str, int],
    ) -> None:
        super().__init__(forwarder, outer, targets)
        self.forwarder, self.target = forwarder, target

    def fail(self) -> None:
        reason = self.reason or os.strerror(self.error)
        self.forwarder.attempts.add(*self.target, "tcp", "", reason)
        super().fail()


class _Proxied(_Outgoing):
    """A connection through the HTTP proxy of the host, with CONNECT (RFC 9110, section 9.3.6)."""

    _answer = b""

    def start(self) -> None:
        """Ask the proxy for the connection, and wait for its answer."""
        with suppress(OSError):  # the next event tells
            self.inner.send(self.forwarder.proxy.request(*self.target), socket.MSG_NOSIGNAL)
        self.relay.watch(self.inner.fileno(), select.EPOLLIN, self._on_answer)

    def _on_answer(self, _events: int) -> None:
        try:
            # No byte more than the header is read here: the rest belongs to the connection.
            seen = self.inner.recv(Proxy.LONGEST_ANSWER, socket.MSG_PEEK)
            # The end of the header may come in two parts.
            end = (self._answer + seen).find(b"\r\n\r\n") + 4
            part = self.inner.recv(end - len(self._answer) if end >= 4 else len(seen))
        except OSError as error:
            self._end(str(error.strerror))
            return
        self._answer += part
        if end < 4 and part and len(self._answer) < Proxy.LONGEST_ANSWER:
            return
        if Proxy.accepts(self._answer):
            self.relay.watch(self.inner.fileno(), 0, self._on_answer)
            super().start()
        else:
            first = self._answer[:60].split(b"\r\n")[0]
            self._end(f"the proxy answered {first.decode('ascii', 'replace')!r}")

    def _end(self, reason: str) -> None:
        self.relay.watch(self.inner.fileno(), 0, self._on_answer)
        self.inner.close()
        self.reason = reason
        self.fail()


def _explain(error: int) -> str:
    return _ERRORS.get(error, f"it cannot be resolved (error {error})")
