"""Messages of rtnetlink(7)."""

from __future__ import annotations

import os
import socket
import struct

__all__ = [
    "CHANGE",
    "CREATE",
    "DELETE_ROUTE",
    "LOOPBACK",
    "NEW_ADDRESS",
    "NEW_LINK",
    "NEW_ROUTE",
    "NEW_RULE",
    "REPLACE",
    "UP",
    "ask",
    "attribute",
    "kind_of_link",
    "link",
    "message",
    "open_netlink",
    "route",
    "up",
    "veth",
]

# <linux/rtnetlink.h>, <linux/if.h>
NEW_LINK, NEW_ADDRESS, NEW_ROUTE, DELETE_ROUTE, NEW_RULE = 16, 20, 24, 25, 32
# Flags of <linux/netlink.h>: a request with an acknowledgement; that creates something, and fails
# with EEXIST if it exists; that creates or replaces it.
CHANGE, CREATE, REPLACE = 0x5, 0x605, 0x505
UP = 0x1
#: The index of the loopback device of each network namespace.
LOOPBACK = 1
_IFLA_LINKINFO, _INFO_KIND, _INFO_DATA, _VETH_INFO_PEER = 18, 1, 2, 1
_RTA_OIF = 4
_PROTO_BOOT = 3


def open_netlink(protocol: int) -> socket.socket:
    """Return a netlink socket in the network namespace of this thread."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    made.settimeout(5)  # the kernel answers during send(2)
    return made


def ask(netlink: socket.socket, *requests: bytes) -> None:
    """Send requests, and raise OSError for the first that fails."""
    for request in requests:
        netlink.send(request)
        # struct nlmsghdr, then the negative errno of struct nlmsgerr
        (code,) = struct.unpack_from("=i", netlink.recv(1 << 16), 16)
        if code:
            raise OSError(-code, os.strerror(-code))


def message(kind: int, flags: int, header: bytes, *attributes: bytes) -> bytes:
    """Return a message: struct nlmsghdr, the header of its kind, attributes."""
    body = header + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 0, 0) + body


def attribute(kind: int, *data: bytes) -> bytes:
    """Return an attribute (struct rtattr), padded to 4 bytes."""
    joined = b"".join(data)
    return struct.pack("=HH", 4 + len(joined), kind) + joined + bytes(-len(joined) % 4)


def link(index: int, flags: int) -> bytes:
    """Return struct ifinfomsg: a device, and the flags to set."""
    return struct.pack("=BxHiII", 0, 0, index, flags, flags)


def kind_of_link(kind: bytes, *data: bytes) -> bytes:
    """Return the attribute IFLA_LINKINFO: a kind of device, and its data."""
    more = (attribute(_INFO_DATA, *data),) if data else ()
    return attribute(_IFLA_LINKINFO, attribute(_INFO_KIND, kind + b"\0"), *more)


def veth(peer: bytes, *attributes: bytes) -> bytes:
    """Return IFLA_LINKINFO of a pair (veth(4)): struct ifinfomsg of the peer, and attributes."""
    return kind_of_link(b"veth", attribute(_VETH_INFO_PEER, peer, *attributes))


def up(index: int) -> bytes:
    """Return a request that sets a device up."""
    return message(NEW_LINK, CHANGE, link(index, UP))


def route(
    request: tuple[int, int], place: tuple[int, int, int], index: int, prefix: int, *more: bytes
) -> bytes:
    """Return a request (kind, flags) about an IPv4 route (struct rtmsg) to a device, at a place:
    table, scope, type; ``more`` are attributes.
    """
    table, scope, kind = place
    header = struct.pack("=8BI", socket.AF_INET, prefix, 0, 0, table, _PROTO_BOOT, scope, kind, 0)
    return message(*request, header, *more, attribute(_RTA_OIF, struct.pack("=i", index)))
