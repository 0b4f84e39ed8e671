"""The name server of a network of containers: a process for each network.

It answers for host names, aliases, ids and addresses of the network's containers. Other names do
not exist (NXDOMAIN), since nothing leads outside; some C libraries (musl) wait for seconds after
REFUSED. The client sends, with descriptors, and waits for no answer:

==========  ====================================================================================
``add``     number, address, names + [the packet socket and the raw socket of the container's
            link, see linux/name_link.py]: serve this container, and its names to all
``remove``  number: forget it
==========  ====================================================================================

It ends when the client shuts down its end of the socket, or with the launcher.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from pytest_sandbox.launcher import dns_messages as dns
from pytest_sandbox.launcher.event_loop import EventLoop, allow_most_descriptors
from pytest_sandbox.launcher.name_service import NameService
from pytest_sandbox.linux.name_link import Link

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.runtime.protocol import Channel, Message

__all__ = ["serve"]

_LOCAL: Final = (-1, "127.0.0.1", ("localhost",))


def serve(channel: Channel) -> None:
    """Serve until the client closes its end."""
    _NameServer(channel).serve()


class _NameServer(EventLoop):
    """The loop of the process."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        allow_most_descriptors()
        self._service = NameService(self, self._answer)
        self._containers: dict[int, tuple[str, tuple[str, ...]]] = {}
        self._names: dict[str, str] = {}  # by address
        self._addresses: dict[str, str] = {}  # by name, in lower case
        self._put(*_LOCAL)

    def _do_add(self, message: Message, fds: list[int]) -> None:
        number = message["number"]
        self._forget(number)
        self._put(number, message["address"], tuple(message["names"]))
        self._service.add(number, Link(*(socket.socket(fileno=fd) for fd in fds)))

    def _put(self, number: int, address: str, names: tuple[str, ...]) -> None:
        self._containers[number] = address, names
        self._names[address] = names[0]
        self._addresses.update((name.lower(), address) for name in names)

    def _do_remove(self, message: Message, _fds: list[int]) -> None:
        self._service.remove(message["number"])
        self._forget(message["number"])

    def _forget(self, number: int) -> None:
        address, names = self._containers.pop(number, ("", ()))
        self._names.pop(address, None)
        for name in names:
            self._addresses.pop(name.lower(), None)

    def _answer(self, query: dns.Query, respond: Callable[[bytes], None]) -> None:
        self.catch_up()  # a container that was added before the query was sent is known
        respond(self._response(query))

    def _response(self, query: dns.Query) -> bytes:
        if query.kind == dns.PTR and (address := dns.reverse_address(query.name)):
            name = self._names.get(address)
            return dns.answer_or_no_name(query, None if name is None else dns.encode_name(name))
        address = self._addresses.get(query.name, "")
        if query.kind == dns.A or not address:
            return dns.answer_or_no_name(query, socket.inet_aton(address) if address else None)
        return dns.answer(query, dns.NO_ERROR)
