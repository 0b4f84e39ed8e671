"""Reset TCP connections from between their ends (RFC 9293, RFC 5961).

A peer accepts a RST only with the sequence number that it expects next. An idle connection shows
none, so a SYN is sent to one end, which answers with a challenge ACK: its own numbers.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from pytest_sandbox.linux.internet_checksum import internet_checksum
from pytest_sandbox.linux.packet_socket import VNET_HEADER

__all__ = ["Key", "Resets", "Segment", "frame", "parse"]

_ETHERNET = 14
_IP = struct.Struct("!BBHHHBBH4s4s")
_TCP = struct.Struct("!HHIIBBHHH")
_IPV4, _TTL, _DO_NOT_FRAGMENT = b"\x08\x00", 64, 0x4000
_FIN, _SYN, _RST, _ACK = 1, 2, 4, 16
_FRAGMENT = 0x1FFF
#: A number that is no one's next one, except by chance; the challenge ACK tells the right one.
_ANY = 0x5EED5EED

#: Address, port, address and port.
Key = tuple[bytes, int, bytes, int]


class Segment(NamedTuple):
    """A TCP segment: its MAC addresses, ends, numbers and flags."""

    ethernet: bytes
    key: Key
    sequence: int
    acknowledged: int
    flags: int
    length: int


def parse(data: bytes) -> Segment | None:
    """Return the TCP segment of a frame; None for anything else, also for a malformed one."""
    at = VNET_HEADER + _ETHERNET
    if len(data) < at + _IP.size + _TCP.size or data[at - 2 : at] != _IPV4:
        return None
    version, _, total, _, fragment, _, protocol, _, source, target = _IP.unpack_from(data, at)
    header = (version & 15) * 4
    if protocol != socket.IPPROTO_TCP or fragment & _FRAGMENT or header < _IP.size:
        return None
    if len(data) < at + header + _TCP.size:
        return None
    port, peer_port, sequence, acknowledged, offset, flags, *_ = _TCP.unpack_from(data, at + header)
    length = max(0, total - header - (offset >> 4) * 4)
    ethernet = data[VNET_HEADER : VNET_HEADER + 12]
    key = (source, port, target, peer_port)
    return Segment(ethernet, key, sequence, acknowledged, flags, length)


def frame(ethernet: bytes, key: Key, sequence: int, flags: int, acknowledged: int = 0) -> bytes:
    """Return a frame with an empty segment; ``ethernet`` is the target's and the sender's MAC."""
    source, port, target, peer_port = key
    numbers = (port, peer_port, sequence & 0xFFFFFFFF, acknowledged, 5 << 4, flags, 0)
    pseudo = source + target + struct.pack("!HH", socket.IPPROTO_TCP, _TCP.size)
    tcp = _TCP.pack(*numbers, internet_checksum(pseudo + _TCP.pack(*numbers, 0, 0)), 0)
    size = _IP.size + _TCP.size
    fixed = (0x45, 0, size, 0, _DO_NOT_FRAGMENT, _TTL, socket.IPPROTO_TCP)
    header = _IP.pack(
        *fixed, internet_checksum(_IP.pack(*fixed, 0, source, target)), source, target
    )
    return bytes(VNET_HEADER) + ethernet + _IPV4 + header + tcp


def _reversed(key: Key) -> Key:
    return key[2], key[3], key[0], key[1]


class Resets:
    """The connections that are being reset, by the id of the fault."""

    def __init__(self) -> None:
        self._connections: dict[Key, int] = {}
        self._began: set[Key] = set()

    def __bool__(self) -> bool:
        return bool(self._connections)

    def add(self, key: Key, fault: int) -> None:
        """Reset a connection from now on."""
        self._connections[key] = self._connections[_reversed(key)] = fault

    def forget(self, faults: set[int]) -> None:
        """Keep the connections of these faults only."""
        self._connections = {
            key: fault for key, fault in self._connections.items() if fault in faults
        }
        self._began &= set(self._connections)

    def challenge(self, ethernet: bytes, key: Key) -> bytes:
        """Return the frame that makes an end of a connection send its numbers; ``key`` is as the
        other end would send it.
        """
        return frame(ethernet, key, _ANY, _SYN)

    def answer(self, data: bytes) -> tuple[int, bool, bytes, bytes] | None:
        """Return what to send instead of a frame of such a connection: the id of the fault, whether
        it is the first, a RST for its sender, and one for its receiver. None for another frame.
        """
        segment = parse(data)
        if segment is None or segment.key not in self._connections:
            return None
        key = segment.key
        if segment.flags & _SYN and not segment.flags & _ACK:  # a new connection of these ports
            for one in {key, _reversed(key)}:  # equal if a process sends from its peer's address
                del self._connections[one]
            return None
        is_first = key not in self._began
        self._began |= {key, _reversed(key)}
        back = segment.ethernet[6:] + segment.ethernet[:6]
        return (
            self._connections[key],
            is_first,
            frame(back, _reversed(key), segment.acknowledged, _RST),
            frame(segment.ethernet, key, segment.sequence, _RST | _ACK, segment.acknowledged),
        )
