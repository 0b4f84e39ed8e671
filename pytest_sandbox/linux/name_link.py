"""The way from a container to its name server at 127.0.0.11, which takes no port inside.

A route sends packets for this address to the loopback device as if it led to another host. There
the kernel drops them, after a packet(7) socket has received them. The name server's process reads
that socket, and answers through a raw(7) socket. So a program inside can listen on port 53 of every
address, no device and no netfilter is needed, and nobody else sees the packets.

UDP is answered packet by packet. TCP is left to the kernel: :class:`TcpServer` is a socket that
listens in a network namespace of the name server's process, and :meth:`TcpServer.deliver` gives it
the packets of all containers, each of which has an address there.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from typing import Final

from pytest_sandbox.linux import packet_socket
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.in_thread import in_thread
from pytest_sandbox.linux.internet_checksum import with_tcp_checksum
from pytest_sandbox.linux.netlink_messages import (
    CHANGE,
    DELETE_ROUTE,
    LOOPBACK,
    NEW_ROUTE,
    REPLACE,
    ask,
    attribute,
    open_netlink,
    route,
    up,
)

__all__ = [
    "ADDRESS",
    "PACKET_SOCKET",
    "RAW_SOCKET",
    "Link",
    "TcpServer",
    "add_route",
    "bind",
    "open_link",
    "payload",
    "remove_route",
]

#: As in docker's containers.
ADDRESS: Final = "127.0.0.11"
_PORT: Final = 53
_OWN: Final = socket.inet_aton(ADDRESS)
_LOCALHOST: Final = socket.inet_aton("127.0.0.1")
_BACKLOG: Final = 64
_IPV4: Final = 0x0800
_FLAGS: Final = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
#: The arguments of socket(2) for the two sockets of a link. The packet socket receives nothing
#: before :func:`bind`.
PACKET_SOCKET: Final = (socket.AF_PACKET, socket.SOCK_DGRAM | _FLAGS, 0)
RAW_SOCKET: Final = (socket.AF_INET, socket.SOCK_RAW | _FLAGS, socket.IPPROTO_RAW)
#: The longest IP packet.
_LONGEST: Final = 0xFFFF
_IP_HEADER: Final = 20
_TCP_HEADER: Final = 20
_UDP: Final = struct.Struct("!4H")
#: Containers have addresses of 127.64.0.0/10 where the TCP server is.
_FIRST: Final = 0x7F400000
_MASK: Final = 0x3FFFFF
_PREFIX: Final = 10
#: Source addresses that are remembered, by container and port: all but 127.0.0.1.
_MOST_SOURCES: Final = 4096

# <linux/rtnetlink.h>
_RTA_DST, _RTA_PREFSRC = 1, 7
_LOCAL_TABLE: Final = (255, 253, 1)  # RT_TABLE_LOCAL, RT_SCOPE_LINK, RTN_UNICAST

#: bpf(4): whole packets to 127.0.0.11, of TCP, or of UDP to port 53.
_TO_SERVER: Final = (
    (0x20, 0, 0, 16),  # ld [16]: the destination
    (0x15, 0, 9, 0x7F00000B),
    (0x28, 0, 0, 6),  # ldh [6]: fragments
    (0x45, 7, 0, 0x3FFF),
    (0x30, 0, 0, 9),  # ldb [9]: the protocol
    (0x15, 4, 0, 6),  # TCP: accept
    (0x15, 0, 4, 17),  # not UDP: drop
    (0xB1, 0, 0, 0),  # ldxb 4*([0]&0xf): the length of the header
    (0x48, 0, 0, 2),  # ldh [x + 2]: the port
    (0x15, 0, 1, _PORT),
    (0x06, 0, 0, _LONGEST),
    (0x06, 0, 0, 0),
)
#: bpf(4): packets of TCP to the addresses of containers.
_TO_CONTAINERS: Final = (
    (0x20, 0, 0, 16),
    (0x54, 0, 0, 0xFFFFFFFF ^ _MASK),
    (0x15, 0, 3, _FIRST),
    (0x30, 0, 0, 9),
    (0x15, 0, 1, 6),
    (0x06, 0, 0, _LONGEST),
    (0x06, 0, 0, 0),
)


def add_route() -> tuple[bytes, bytes]:
    """Return the requests for the route to the name server, in a container's namespace."""
    return _add_route(_OWN, 32)


def _add_route(target: bytes, prefix: int) -> tuple[bytes, bytes]:
    return up(LOOPBACK), _route((NEW_ROUTE, REPLACE), target, prefix)


def remove_route() -> bytes:
    """Return a request to remove it: queries are refused at once (ECONNREFUSED) from then on."""
    return _route((DELETE_ROUTE, CHANGE), _OWN, 32)


def _route(request: tuple[int, int], target: bytes, prefix: int) -> bytes:
    """Return a request about a route to loopback that delivers nothing."""
    ends = attribute(_RTA_DST, target), attribute(_RTA_PREFSRC, _LOCALHOST)
    return route(request, _LOCAL_TABLE, LOOPBACK, prefix, *ends)


def bind(packets_fd: int) -> None:
    """Make a packet socket of a container receive what is sent to the name server."""
    with socket.socket(fileno=os.dup(packets_fd)) as packets:
        _bind(packets, _TO_SERVER)


def _bind(packets: socket.socket, code: tuple[tuple[int, int, int, int], ...]) -> None:
    packet_socket.attach_filter(packets, code)
    packets.bind(("lo", _IPV4))


def open_link() -> Link:
    """Open the way from the network namespace of this thread."""
    return Link(*_open(add_route(), _TO_SERVER))


def _open(
    requests: tuple[bytes, bytes], code: tuple[tuple[int, int, int, int], ...]
) -> tuple[socket.socket, socket.socket]:
    """Add a route in the network namespace of this thread; return a packet and a raw socket."""
    with open_netlink(socket.NETLINK_ROUTE) as netlink:
        ask(netlink, *requests)
    raw = socket.socket(*RAW_SOCKET)
    try:
        packets = socket.socket(*PACKET_SOCKET)
        _bind(packets, code)
    except BaseException:
        raw.close()
        raise
    return packets, raw


class Link:
    """The sockets of one network namespace: packets are received from one, and sent to the other.

    What they receive is untrusted.
    """

    def __init__(self, packets: socket.socket, raw: socket.socket) -> None:
        self._packets, self._raw = packets, raw

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._packets.fileno()

    def receive(self) -> bytes | None:
        """Return the next packet, with a whole IP header; empty if it is malformed, None if there
        is none. Raises OSError if the socket was closed.
        """
        try:
            data = self._packets.recv(_LONGEST)
        except BlockingIOError:
            return None
        if len(data) < _IP_HEADER or (data[0] & 15) * 4 < _IP_HEADER:
            return b""
        (length,) = struct.unpack_from("!H", data, 2)
        least = (data[0] & 15) * 4 + (_TCP_HEADER if is_tcp(data) else _UDP.size)
        return data[:length] if least <= length <= len(data) else b""

    def send(self, packet: bytes) -> None:
        """Deliver a packet, without a checksum of its IP header; it is lost if that is not
        possible.
        """
        with suppress(OSError):  # it was closed, or the kernel has no buffer
            self._raw.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))

    def respond(self, packet: bytes, data: bytes) -> None:
        """Send the response to a packet of UDP."""
        (port,) = struct.unpack_from("!H", packet, (packet[0] & 15) * 4)
        length = _UDP.size + len(data)
        # The checksum is 0: it is not used (RFC 768), since the packet stays in the kernel.
        udp = _UDP.pack(_PORT, port, length, 0)
        header = _header(socket.IPPROTO_UDP, length)
        self.send(header + packet[16:20] + packet[12:16] + udp + data)

    def close(self) -> None:
        """Close both.

        It takes some 10 ms: the kernel waits until no processor uses the packet socket
        (synchronize_net()).
        """
        self._raw.close()
        self._packets.close()


def _header(protocol: int, length: int) -> bytes:
    """Return the start of an IP header: don't fragment, a TTL of 64, the checksum left out."""
    return struct.pack("!BBHHHBBH", 0x45, 0, _IP_HEADER + length, 0, 0x4000, 64, protocol, 0)


def is_tcp(packet: bytes) -> bool:
    """Return whether a packet is of TCP, and not of UDP."""
    return packet[9] == socket.IPPROTO_TCP


def payload(packet: bytes) -> bytes:
    """Return the data of a packet of UDP."""
    return packet[(packet[0] & 15) * 4 + _UDP.size :]


class TcpServer:
    """A TCP socket that listens at the address of the name server, in a new network namespace.

    Connections have as their peer the address of a container (:meth:`number`). Raises OSError.
    """

    def __init__(self) -> None:
        self.listening, self._link = in_thread(self._open)
        #: By container and port.
        self._sources: dict[tuple[int, int], bytes] = {}

    @staticmethod
    def _open() -> tuple[socket.socket, Link]:
        sc.unshare(sc.CLONE_NEWNET)
        target = struct.pack("!I", _FIRST)
        link = Link(*_open(_add_route(target, _PREFIX), _TO_CONTAINERS))
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM | _FLAGS)
        listening.bind((ADDRESS, _PORT))
        listening.listen(_BACKLOG)
        return listening, link

    def fileno(self) -> int:
        """Return the descriptor to poll for packets to containers."""
        return self._link.fileno()

    @staticmethod
    def number(address: str) -> int:
        """Return the number of the container with an address."""
        return int(struct.unpack("!I", socket.inet_aton(address))[0]) & _MASK

    def deliver(self, number: int, packet: bytes) -> None:
        """Deliver a packet of the container with this number."""
        source, port = packet[12:16], _port(packet, 0)
        self._sources.pop((number & _MASK, port), None)
        if source != _LOCALHOST:
            if len(self._sources) >= _MOST_SOURCES:
                self._sources.clear()
            self._sources[number & _MASK, port] = source
        address = struct.pack("!I", _FIRST | number & _MASK)
        self._link.send(with_tcp_checksum(packet[:12] + address + packet[16:]))

    def receive(self) -> tuple[int, bytes] | None:
        """Return the next packet for a container, and its number; None if there is none."""
        packet = self._link.receive()
        if not packet:
            return None
        number = self.number(socket.inet_ntoa(packet[16:20]))
        target = self._sources.get((number, _port(packet, 2)), _LOCALHOST)
        return number, with_tcp_checksum(packet[:16] + target + packet[20:])

    def close(self) -> None:
        """Close all sockets; the namespace ends with them."""
        self.listening.close()
        self._link.close()


def _port(packet: bytes, offset: int) -> int:
    return int(struct.unpack_from("!H", packet, (packet[0] & 15) * 4 + offset)[0])
