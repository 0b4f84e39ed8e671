"""The gateway of one container: a network namespace in which a process accepts its connections.

A veth(4) pair connects the two; the container's default route leads through it. The gateway has no
route itself, so the kernel drops every packet silently, until a socket listens for its address and
port (:meth:`Gateway.listen`). The first packets of connections are seen by a packet(7) socket. Thus
the process decides about each connection while the program inside still waits.

Both devices have one hardware address and no ARP, since the packets for all addresses must arrive.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from typing import Final, NamedTuple

from pytest_sandbox.linux import name_link, packet_socket
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.in_thread import in_thread
from pytest_sandbox.linux.internet_checksum import checksum_field, with_tcp_checksum
from pytest_sandbox.linux.netlink_messages import (
    CHANGE,
    CREATE,
    LOOPBACK,
    NEW_ADDRESS,
    NEW_LINK,
    NEW_ROUTE,
    NEW_RULE,
    UP,
    ask,
    attribute,
    link,
    message,
    open_netlink,
    route,
    up,
    veth,
)
from pytest_sandbox.linux.network_sockets import NETLINK_SOCK_DIAG

__all__ = ["Gateway", "Packet"]

#: The gateway's address. Its network is reserved for benchmarks (RFC 2544).
_ADDRESS: Final = "198.18.0.1"
_INSIDE: Final = "198.18.0.2"
_PREFIX: Final = 15
_DEVICE, _PEER = b"gateway\0", b"eth0\0"
_HARDWARE = b"\x02\x42\xc6\x12\x00\x01"
# They must differ from each other and from those of lo and of devices that the kernel creates.
_INDEX, _PEER_INDEX = 1001, 1000

# <linux/rtnetlink.h>, <linux/if_link.h>, <linux/fib_rules.h>, <linux/netlink.h>, <linux/ip.h>
_NOARP = 0x80
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_AF_SPEC, _IFLA_NET_NS_FD = 1, 3, 26, 28
_INET_CONF, _CONF_FORWARDING = 1, 1
_TABLE: Final = 100
_TABLE_MAIN: Final = 254
_RTN_UNICAST, _RTN_LOCAL = 1, 2
_SCOPE_LINK, _SCOPE_HOST = 253, 254
_FRA_DST, _FRA_PROTOCOL, _FRA_PORTS = 1, 22, 24
_TO_TABLE = 1
# <linux/in.h>, <linux/if_packet.h>, <asm-generic/socket.h>
_IP_TRANSPARENT, _SOL_PACKET, _IGNORE_OUTGOING = 19, 263, 23
_IPV4 = 0x0800
_BACKLOG = 1024
_LARGEST = 2048
#: bpf(4): TCP with SYN and without ACK, and UDP, to other addresses than that of the gateway.
_FILTER = (
    (0x20, 0, 0, 16),  # ld [16]: the destination
    (0x15, 8, 0, 0xC6120001),  # the gateway: drop
    (0x30, 0, 0, 9),  # ldb [9]: the protocol
    (0x15, 5, 0, 17),  # UDP: accept
    (0x15, 0, 5, 6),  # neither: drop
    (0xB1, 0, 0, 0),  # ldxb 4*([0]&0xf): the length of the header
    (0x50, 0, 0, 13),  # ldb [x + 13]: the flags
    (0x54, 0, 0, 0x12),  # and SYN | ACK
    (0x15, 0, 1, 0x02),  # SYN alone
    (0x06, 0, 0, _LARGEST),
    (0x06, 0, 0, 0),
)


class Packet(NamedTuple):
    """The first packet of a connection, or a datagram."""

    data: bytes
    protocol: str
    source_port: int
    address: str
    port: int


class Gateway:
    """A new gateway for the container of a pidfd.

    ``packets`` is a non-blocking socket with the packets of :meth:`read`, ``names`` the way to the
    name server of the container, which its user closes. Raises OSError, with EOPNOTSUPP if the
    kernel has no veth devices or no policy routing.
    """

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd
        self._inside, self.names = in_thread(self._open_inside)
        in_thread(self._open)

    def _open_inside(
        self,
    ) -> tuple[tuple[int, socket.socket, socket.socket, socket.socket], name_link.Link]:
        """Return the container's namespace, and sockets in it: packets, routes, diagnostics, and
        the way to the name server.
        """
        sc.setns(self._pidfd, sc.CLONE_NEWNET)
        with suppress(OSError):  # a read-only /proc/sys, or no IPv6
            _write("/proc/sys/net/ipv6/conf/default/disable_ipv6")
        namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        routes, diagnostics = open_netlink(socket.NETLINK_ROUTE), open_netlink(NETLINK_SOCK_DIAG)
        return (namespace, _packet_socket(), routes, diagnostics), name_link.open_link()

    def _open(self) -> None:
        sc.unshare(sc.CLONE_NEWNET)
        self._routes = open_netlink(socket.NETLINK_ROUTE)
        namespace, _packets, inner, _diagnostics = self._inside
        ask(self._routes, _pair(namespace))
        ask(self._routes, _without_forwarding(), up(LOOPBACK))
        ask(self._routes, _address(_INDEX, _ADDRESS), _default_route(_TABLE, LOOPBACK, _RTN_LOCAL))
        ask(self._routes, _rule(_ADDRESS, 1))  # it fails at once if the kernel has no such rules
        ask(
            inner,
            up(_PEER_INDEX),
            _address(_PEER_INDEX, _INSIDE),
            _default_route(_TABLE_MAIN, _PEER_INDEX, _RTN_UNICAST),
        )
        self.packets = _packet_socket()
        self.packets.bind(("gateway", _IPV4))
        self._namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close all other sockets, and with the last one the gateway's namespace."""
        namespace, *sockets = self._inside
        for one in (*sockets, self._routes, self.packets):
            one.close()
        os.close(namespace)
        os.close(self._namespace)

    def read(self) -> Packet | None:
        """Return the next packet; None if there is none, or it is malformed."""
        try:
            data = self.packets.recv(_LARGEST)
        except OSError:  # none is there; or the device was removed (ENETDOWN)
            return None
        start = (data[0] & 15) * 4
        if len(data) < start + 8:
            return None
        source, port = struct.unpack_from("!HH", data, start)
        protocol = "tcp" if data[9] == socket.IPPROTO_TCP else "udp"
        return Packet(data, protocol, source, socket.inet_ntoa(data[16:20]), port)

    def refuse(self, packet: Packet) -> None:
        """Answer the first packet of a connection with RST: the program gets ECONNREFUSED."""
        data, start = packet.data, (packet.data[0] & 15) * 4
        (sequence,) = struct.unpack_from("!I", data, start + 4)
        ends, ports = data[16:20] + data[12:16], (packet.port, packet.source_port)
        flags = 0x5014  # a header of 20 bytes; RST and ACK
        tcp = struct.pack("!HHIIHHHH", *ports, 0, (sequence + 1) & 0xFFFFFFFF, flags, 0, 0, 0)
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, socket.IPPROTO_TCP, 0) + ends
        whole = ip[:10] + checksum_field(ip) + ip[12:] + tcp
        self._send(self.packets, "gateway", with_tcp_checksum(whole))

    def listen(self, packet: Packet, *, every_address: bool) -> socket.socket:
        """Return a socket that listens on the packet's port, on its address or on every one, and
        deliver the packet to it.

        The socket's connections have the destination as their own address (getsockname(2)).
        """
        made = self._listening("0.0.0.0" if every_address else packet.address, packet.port)
        self._send(self._inside[1], "eth0", with_tcp_checksum(packet.data))
        return made

    def _listening(self, address: str, port: int) -> socket.socket:
        made = in_thread(self._new_socket)
        try:
            made.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)
            made.bind((address, port))
            made.listen(_BACKLOG)
            ask(self._routes, _rule(address, port))
        except BaseException:
            made.close()
            raise
        return made

    def _new_socket(self) -> socket.socket:
        sc.setns(self._namespace, sc.CLONE_NEWNET)
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

    def _send(self, one: socket.socket, device: str, data: bytes) -> None:
        with suppress(OSError):  # the container has ended
            one.sendto(data, (device, _IPV4, 0, 0, _HARDWARE))

    def program(self, packet: Packet) -> str:
        """Return the name (comm) of the program inside that sent a packet; empty if it has ended.

        It takes some milliseconds: it looks at the descriptors of the container's processes.
        """
        with suppress(OSError, struct.error):
            if inode := self._socket_inode(packet):
                return _owner(f"socket:[{inode}]", os.fstat(self._inside[0]).st_ino)
        return ""

    def _socket_inode(self, packet: Packet) -> int:
        """Ask sock_diag(7) for the inode of the packet's socket; 0 if there is none."""
        protocol = packet.data[9]
        ports = struct.pack("!HH", packet.source_port, packet.port)
        # struct inet_diag_req_v2 with struct inet_diag_sockid: no cookie
        ends = packet.data[12:16] + bytes(12) + packet.data[16:20] + bytes(12)
        for remote in (ends, packet.data[12:16] + bytes(28)):  # a UDP socket may not be connected
            query = struct.pack("=BBBxI", socket.AF_INET, protocol, 0, 0xFFFFFFFF)
            query += (ports if remote is ends else ports[:2] + bytes(2)) + remote
            query += struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
            diagnostics = self._inside[3]
            diagnostics.send(struct.pack("=IHHII", 16 + len(query), 20, 0x1, 0, 0) + query)
            answer = diagnostics.recv(1 << 16)
            if struct.unpack_from("=H", answer, 4)[0] == 20:
                return int(struct.unpack_from("=I", answer, 16 + 68)[0])
        return 0


def _owner(link: str, network: int) -> str:
    """Return the program of this network namespace that has a socket open."""
    own = f"net:[{network}]"
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if os.readlink(f"/proc/{pid}/ns/net") != own:
                continue
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}") == link:
                    with open(f"/proc/{pid}/comm", "rb") as comm:
                        return comm.read().decode(errors="replace").rstrip("\n")
    return ""


def _write(path: str) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(b"1")


def _packet_socket() -> socket.socket:
    """Return a packet(7) socket of this thread's namespace, which is not bound to a device."""
    made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
    made.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    packet_socket.attach_filter(made, _FILTER)
    return made


def _pair(namespace: int) -> bytes:
    return message(
        NEW_LINK,
        CREATE,
        link(_INDEX, UP | _NOARP),
        attribute(_IFLA_IFNAME, _DEVICE),
        attribute(_IFLA_ADDRESS, _HARDWARE),
        veth(
            link(_PEER_INDEX, _NOARP),  # the kernel cannot set it up before it has its peer
            attribute(_IFLA_IFNAME, _PEER),
            attribute(_IFLA_ADDRESS, _HARDWARE),
            attribute(_IFLA_NET_NS_FD, struct.pack("=I", namespace)),
        ),
    )


def _without_forwarding() -> bytes:
    """Return a request that turns forwarding off: a new namespace may inherit it from the host."""
    one = attribute(_CONF_FORWARDING, struct.pack("=I", 0))
    return message(
        NEW_LINK,
        CHANGE,
        link(_INDEX, 0),
        attribute(_IFLA_AF_SPEC, attribute(socket.AF_INET, attribute(_INET_CONF, one))),
    )


def _address(index: int, address: str) -> bytes:
    header = struct.pack("=BBBBi", socket.AF_INET, _PREFIX, 0, 0, index)
    own = socket.inet_aton(address)
    return message(NEW_ADDRESS, CREATE, header, attribute(1, own), attribute(2, own))


def _default_route(table: int, index: int, kind: int) -> bytes:
    """Return a request for a route of all addresses to a device."""
    scope = _SCOPE_HOST if kind == _RTN_LOCAL else _SCOPE_LINK
    return route((NEW_ROUTE, CREATE), (table, scope, kind), index, 0)


def _rule(address: str, port: int) -> bytes:
    """Return a request that makes TCP to a port of an address local (struct fib_rule_hdr)."""
    every = address == "0.0.0.0"
    header = struct.pack(
        "=8BI", socket.AF_INET, 0 if every else 32, 0, 0, _TABLE, 0, 0, _TO_TABLE, 0
    )
    return message(
        NEW_RULE,
        CREATE,
        header,
        b"" if every else attribute(_FRA_DST, socket.inet_aton(address)),
        attribute(_FRA_PROTOCOL, bytes([socket.IPPROTO_TCP])),
        attribute(_FRA_PORTS, struct.pack("=HH", port, port)),
    )
