"""Sockets in the network namespace of a container, used from outside (setns(2), sock_diag(7)).

A socket stays in the namespace in which it was created, so a process that holds one can connect
there, or ask who listens there, without entering the namespace itself.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.linux.syscall_batch import SyscallBatch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "NETLINK_SOCK_DIAG",
    "Connection",
    "connections",
    "listening_families",
    "open_socket",
]

NETLINK_SOCK_DIAG = 4  # <linux/netlink.h>
_SOCK_DIAG_BY_FAMILY = 20  # <linux/sock_diag.h>
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_STATE_LISTEN = 1 << 10  # TCP_LISTEN of <net/tcp_states.h>
#: Bits of TCP_ESTABLISHED, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_CLOSING.
_STATES_OPEN = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11
#: The start of struct inet_diag_msg: family, ports and addresses of both ends.
_SOCKET = struct.Struct("=BxxxHH16s16s")
_MAPPED = bytes(10) + b"\xff\xff"  # an IPv4 address of an IPv6 socket (RFC 4291)
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
#: struct inet_diag_req_v2: family, protocol, extensions, padding, states, local port, the rest of
#: struct inet_diag_sockid.
_QUERY = struct.Struct("=BBBxI2s46x")
_CHUNK = 1 << 16


def open_socket(pidfd: int, builder_fd: int, family: int, kind: int, protocol: int = 0) -> int:
    """Return a descriptor of a new non-blocking socket in the network namespace of a process.

    ``builder_fd`` is the user namespace in which the container was created, or -1 for the caller's
    own. Raises OSError; with ESRCH, the process has ended.
    """
    batch, step = SyscallBatch(), "open a socket"
    if builder_fd >= 0:
        batch.add(step, "setns", builder_fd, sc.CLONE_NEWUSER)
    batch.add(step, "setns", pidfd, sc.CLONE_NEWNET)
    flags = kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    made = batch.add(step, "socket", family, flags, protocol)
    with Deferred():
        batch.run_in_child(sc.CLONE_FILES)
        return batch[made]


def listening_families(diag_fd: int, port: int) -> list[int]:
    """Return AF_INET and AF_INET6 if a TCP socket of that family listens on a port, on any address,
    in the namespace of a socket of NETLINK_SOCK_DIAG.

    It takes some 15 microseconds, since the kernel looks at listening sockets of this port alone.
    Raises OSError with ENOENT if the kernel has no inet_diag.
    """
    families = (socket.AF_INET, socket.AF_INET6)
    return [one for one in families if [*_dump(diag_fd, one, _STATE_LISTEN, port)]]


class Connection(NamedTuple):
    """The ends of a TCP connection: addresses and ports."""

    address: str
    port: int
    peer_address: str
    peer_port: int


def connections(diag_fd: int) -> list[Connection]:
    """Return the IPv4 connections of TCP sockets in the namespace of a socket of NETLINK_SOCK_DIAG,
    without those that are being opened.

    Raises OSError with ENOENT if the kernel has no inet_diag.
    """
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for body in _dump(diag_fd, family, _STATES_OPEN):
            _family, port, peer_port, address, peer = _SOCKET.unpack_from(body)
            if family == socket.AF_INET6:
                if not address.startswith(_MAPPED):
                    continue
                address, peer = address[12:], peer[12:]
            found.append(
                Connection(
                    socket.inet_ntoa(address[:4]),
                    socket.ntohs(port),
                    socket.inet_ntoa(peer[:4]),
                    socket.ntohs(peer_port),
                )
            )
    return found


def _dump(diag_fd: int, family: int, states: int, port: int = 0) -> Iterator[bytes]:
    """Yield struct inet_diag_msg of the TCP sockets in some states, on one port unless it is 0."""
    query = _QUERY.pack(family, socket.IPPROTO_TCP, 0, states, struct.pack("!H", port))
    length = _HEADER.size + len(query)
    os.write(diag_fd, _HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 0, 0) + query)
    while True:
        for kind, body in _messages(os.read(diag_fd, _CHUNK)):
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                code = -struct.unpack_from("=i", body)[0]
                raise OSError(code, f"{os.strerror(code)}: sock_diag")
            yield body


def _messages(data: bytes) -> list[tuple[int, bytes]]:
    """Return type and body of each netlink message (netlink(7))."""
    found, at = [], 0
    while at + _HEADER.size <= len(data):
        length, kind, *_rest = _HEADER.unpack_from(data, at)
        found.append((kind, data[at + _HEADER.size : at + length]))
        at += (length + 3) & ~3
    return found
