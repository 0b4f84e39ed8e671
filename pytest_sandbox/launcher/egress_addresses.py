"""Which addresses of the host a name may not lead to."""

from __future__ import annotations

import socket
from contextlib import suppress

__all__ = ["is_of_host", "is_reserved"]

#: An IPv4 address as one of IPv6: mapped (RFC 4291), and for a translator (NAT64, RFC 6052).
_PREFIXES = (bytes(10) + b"\xff\xff", b"\x00\x64\xff\x9b" + bytes(8))


def is_of_host(address: str) -> bool:
    """Return whether an address is loopback, link-local, "this host", multicast or reserved
    (RFC 6890), or the host's own.
    """
    packed = _packed(address)
    if packed[:12] in _PREFIXES:
        packed = packed[12:]
    if len(packed) == 4:
        is_special = is_reserved(socket.inet_ntoa(packed)) or packed[:2] == b"\xa9\xfe"
    else:
        is_special = (
            packed[:12] == bytes(12)  # ::, ::1, and IPv4-compatible addresses
            or packed[0] == 0xFF
            or (packed[0] == 0xFE and packed[1] >= 0x80)  # link-local, and site-local
        )
    return is_special or _is_local(packed)


def is_reserved(address: str) -> bool:
    """Return whether an IPv4 address is loopback, "this host", multicast or reserved (RFC 6890)."""
    first = socket.inet_aton(address)[0]
    return first in {0, 127} or first >= 224


def _packed(address: str) -> bytes:
    text = address.partition("%")[0]
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def _is_local(packed: bytes) -> bool:
    """Return whether a device has the address: only then can a socket be bound to it."""
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as one:
        one.bind((socket.inet_ntop(family, packed), 0))
        return True
    return False
