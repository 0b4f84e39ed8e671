"""The checksum of IP, TCP and UDP headers."""

from __future__ import annotations

import socket
import struct

__all__ = ["checksum_field", "internet_checksum", "with_tcp_checksum"]


def internet_checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return ~total & 0xFFFF


def checksum_field(data: bytes) -> bytes:
    """Return the Internet checksum as headers have it."""
    return struct.pack("!H", internet_checksum(data))


def with_tcp_checksum(packet: bytes) -> bytes:
    """Return a packet of TCP with its checksum, which the kernel leaves to the device (veth)."""
    start = (packet[0] & 15) * 4
    segment = packet[start : struct.unpack_from("!H", packet, 2)[0]]
    segment = segment[:16] + bytes(2) + segment[18:]
    pseudo = packet[12:20] + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(segment))
    return packet[:start] + segment[:16] + checksum_field(pseudo + segment) + segment[18:]
