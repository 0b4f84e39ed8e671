"""The checksum of IP, TCP and UDP headers."""

from __future__ import annotations

import struct

__all__ = ["internet_checksum"]


def internet_checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return ~total & 0xFFFF
