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

__all__ = ["ask_amqp", "ask_kafka", "ask_mysql", "ask_postgres", "ask_redis"]

#: The protocol's version 3.0 (PostgreSQL: Message Formats, StartupMessage).
_POSTGRES_PROTOCOL = 196608
#: CLIENT_PROTOCOL_41, CLIENT_SECURE_CONNECTION and CLIENT_PLUGIN_AUTH (MariaDB: Connecting).
_MYSQL_CAPABILITIES = 0x200 | 0x8000 | 0x80000
_MYSQL_UTF8 = 45
_MYSQL_PACKET = 1 << 24
_COM_QUERY = b"\x03"
#: The header of AMQP 0-9-1, the type of a method's frame, and the last byte of each (4.2.2, 4.2.3).
_AMQP = b"AMQP\0\0\x09\x01"
_AMQP_METHOD = 1
_AMQP_END = b"\xce"
#: Class and number of methods of a connection (AMQP 0-9-1, 1.4).
_START, _START_OK, _TUNE, _TUNE_OK, _OPEN, _OPEN_OK, _CLOSE, _CLOSE_OK = (
    (10, number) for number in (10, 11, 30, 31, 40, 41, 50, 51)
)
#: Key and version of a request (Kafka protocol guide, Metadata API).
_KAFKA_METADATA = (3, 1)


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


def ask_amqp() -> Conversation:
    """Log in as ``guest``, open the virtual host "/", and close the connection."""
    yield from _amqp_method(_AMQP, _START)
    login = _amqp_short("PLAIN") + _amqp_long("\0guest\0guest") + _amqp_short("en_US")
    limits = yield from _amqp_method(_amqp_frame(_START_OK, _amqp_long("") + login), _TUNE)
    tuned = limits[:6] + struct.pack("!H", 0)  # no heartbeat
    opened = _amqp_frame(_TUNE_OK, tuned) + _amqp_frame(_OPEN, _amqp_short("/") + bytes(2))
    yield from _amqp_method(opened, _OPEN_OK)
    closed = struct.pack("!H", 200) + _amqp_short("ready") + bytes(4)
    yield from _amqp_method(_amqp_frame(_CLOSE, closed), _CLOSE_OK)


def _amqp_frame(method: tuple[int, int], arguments: bytes) -> bytes:
    payload = struct.pack("!HH", *method) + arguments
    return struct.pack("!BHI", _AMQP_METHOD, 0, len(payload)) + payload + _AMQP_END


def _amqp_short(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def _amqp_long(text: str) -> bytes:
    return struct.pack("!I", len(text)) + text.encode()


def _amqp_method(sent: bytes, expected: tuple[int, int]) -> Generator[bytes, bytes, bytes]:
    """Receive a frame, and return the arguments of its method, which has to be the expected one."""
    received = yield sent
    while len(received) < 7 or len(received) < 8 + struct.unpack_from("!I", received, 3)[0]:
        if received.startswith(b"AMQP"):
            raise UnexpectedAnswer("it does not speak AMQP 0-9-1")
        received += yield b""
    method, arguments = received[7:11], received[11:-1]
    if method == struct.pack("!HH", *_CLOSE):
        raise UnexpectedAnswer(arguments[3:-4].decode(errors="replace"))
    if received[0] != _AMQP_METHOD or method != struct.pack("!HH", *expected):
        raise UnexpectedAnswer(f"the frame {received[:11].hex(' ')} instead of {expected}")
    return arguments


def ask_kafka() -> Conversation:
    """Ask for the brokers and all topics; there has to be a broker."""
    client = b"pytest-sandbox"
    key, version = _KAFKA_METADATA
    header = struct.pack("!HHIH", key, version, 1, len(client)) + client
    request = header + struct.pack("!i", -1)
    received = yield struct.pack("!I", len(request)) + request
    while len(received) < 12 or len(received) < 4 + struct.unpack_from("!I", received)[0]:
        received += yield b""
    if struct.unpack_from("!i", received, 8)[0] < 1:
        raise UnexpectedAnswer("there is no broker")
