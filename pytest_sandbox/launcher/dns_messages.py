"""Messages of the domain name system (RFC 1035), as far as a forwarder answers them."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

__all__ = [
    "NO_ERROR",
    "NO_NAME",
    "PTR",
    "SERVER_FAILURE",
    "A",
    "Query",
    "answer",
    "answer_or_no_name",
    "encode_name",
    "parse",
    "reverse_address",
]

A: Final = 1
PTR: Final = 12
_INTERNET: Final = 1
NO_ERROR, SERVER_FAILURE, NO_NAME = 0, 2, 3
_HEADER: Final = struct.Struct("!6H")
#: Seconds for which an answer is valid: names are resolved again at each connection anyway.
_TTL: Final = 1
_LARGEST_LABEL: Final = 63
_LONGEST_NAME: Final = 253
_REVERSE: Final = ".in-addr.arpa"
#: Others mean something to a proxy, which gets the name in a request: "evil.org:443#.example.org".
_NAME: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_.")


class Query(NamedTuple):
    """A question: ``name`` in lower case without a final dot.

    It is empty, and ``kind`` is 0, if the question is not about the internet, or has a name that no
    host has.
    """

    message: bytes
    name: str
    kind: int
    end: int


def parse(message: bytes) -> Query | None:
    """Return the question of a query; None for anything else."""
    if len(message) < _HEADER.size:
        return None
    _id, flags, questions, *_counts = _HEADER.unpack_from(message)
    if flags & 0xF800 or questions != 1:  # an answer, or not a standard query
        return None
    labels, at = [], _HEADER.size
    while at < len(message) and (length := message[at]):
        if length > _LARGEST_LABEL or at + 1 + length > len(message):
            return None
        labels.append(message[at + 1 : at + 1 + length])
        at += 1 + length
    if at + 5 > len(message) or sum(map(len, labels)) + len(labels) > _LONGEST_NAME + 1:
        return None
    kind, family = struct.unpack_from("!HH", message, at + 1)
    name = b".".join(labels).lower()
    if family != _INTERNET or not _NAME.issuperset(name):
        return Query(message, "", 0, at + 5)
    return Query(message, name.decode("ascii"), kind, at + 5)


def answer(query: Query, code: int, data: bytes | None = None) -> bytes:
    """Return the response to a query: a response code, and the data of one record or none."""
    (identity,) = struct.unpack_from("!H", query.message)
    (flags,) = struct.unpack_from("!H", query.message, 2)
    # a response, with the query's "recursion desired", and "recursion available"
    header = _HEADER.pack(identity, 0x8080 | (flags & 0x0100) | code, 1, data is not None, 0, 0)
    question = query.message[_HEADER.size : query.end]
    if data is None:
        return header + question
    record = struct.pack("!HHHIH", 0xC00C, query.kind, _INTERNET, _TTL, len(data))
    return header + question + record + data


def answer_or_no_name(query: Query, data: bytes | None) -> bytes:
    """Return the response with the data of one record; for None, that the name does not exist."""
    return answer(query, NO_NAME if data is None else NO_ERROR, data)


def reverse_address(name: str) -> str:
    """Return the address of a name of a reverse lookup; empty for another name."""
    digits, found, rest = name.partition(_REVERSE)
    return ".".join(reversed(digits.split("."))) if found and not rest else ""


def encode_name(name: str) -> bytes:
    """Return a name as records have it."""
    labels = [label.encode("ascii") for label in name.split(".")]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
