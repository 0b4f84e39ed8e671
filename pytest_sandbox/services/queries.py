"""What the recipes ask a server to find out whether it is ready: a query, since a server may listen
long before it answers one.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from pytest_sandbox.container.conditions import UnexpectedAnswer

if TYPE_CHECKING:
    from collections.abc import Generator

    Conversation = Generator[bytes, bytes, None]

__all__ = ["ask_mysql", "ask_postgres", "ask_redis"]

#: The protocol's version 3.0 (PostgreSQL: Message Formats, StartupMessage).
_POSTGRES_PROTOCOL = 196608
#: CLIENT_PROTOCOL_41, CLIENT_SECURE_CONNECTION and CLIENT_PLUGIN_AUTH (MariaDB: Connecting).
_MYSQL_CAPABILITIES = 0x200 | 0x8000 | 0x80000
_MYSQL_UTF8 = 45
_MYSQL_PACKET = 1 << 24
_COM_QUERY = b"\x03"


def ask_redis() -> Conversation:
    """Send PING; a server that still loads its data answers ``-LOADING``."""
    answer = yield b"PING\r\n"
    while b"\n" not in answer:
        answer += yield b""
    if not answer.startswith(b"+PONG"):
        raise UnexpectedAnswer(answer[:200].decode(errors="replace").strip())


def ask_postgres() -> Conversation:
    """Connect as ``postgres`` without a password, and select a number."""
    given = b"user\0postgres\0database\0postgres\0\0"
    start = struct.pack("!II", len(given) + 8, _POSTGRES_PROTOCOL) + given
    yield from _until_ready_for_query(start)
    query = b"select 1\0"
    yield from _until_ready_for_query(b"Q" + struct.pack("!I", len(query) + 4) + query)


def _until_ready_for_query(sent: bytes) -> Conversation:
    """Receive messages, each a type and a length, until ReadyForQuery."""
    received = yield sent
    while True:
        while len(received) < 5 or len(received) <= _length(received):
            received += yield b""
        kind, message = received[:1], received[5 : _length(received) + 1]
        received = received[_length(received) + 1 :]
        if kind == b"E":
            fields = message.decode(errors="replace").split("\0")
            raise UnexpectedAnswer(next((one[1:] for one in fields if one[:1] == "M"), "an error"))
        if kind == b"Z":
            return


def _length(message: bytes) -> int:
    found: int = struct.unpack_from("!I", message, 1)[0]
    return found


def ask_mysql() -> Conversation:
    """Connect as ``root`` without a password, and select a number."""
    yield from _packet(b"")  # the server's greeting
    plugin = b"mysql_native_password\0"
    user = b"root\0\0"
    response = struct.pack("<IIB23x", _MYSQL_CAPABILITIES, _MYSQL_PACKET - 1, _MYSQL_UTF8)
    yield from _packet(_framed(1, response + user + plugin))
    yield from _packet(_framed(0, _COM_QUERY + b"select 1"))


def _framed(number: int, payload: bytes) -> bytes:
    return struct.pack("<I", len(payload))[:3] + bytes([number]) + payload


def _packet(sent: bytes) -> Conversation:
    """Receive a packet, and raise for one with an error."""
    received = yield sent
    while len(received) < 5 or len(received) < 4 + int.from_bytes(received[:3], "little"):
        received += yield b""
    if received[4] == 0xFF:
        raise UnexpectedAnswer(received[7:200].decode(errors="replace"))
