"""Messages of the domain name system: what a program inside sends is untrusted."""

from __future__ import annotations

import random
import struct

import pytest

from pytest_sandbox.launcher import dns_messages as dns


def query(name, kind=1, *, flags=0x0100, questions=1, family=1, tail=b""):
    head = struct.pack("!6H", 0xABCD, flags, questions, 0, 0, 0)
    return head + dns.encode_name(name) + struct.pack("!HH", kind, family) + tail


def test_a_query_and_its_answer():
    """The answer has the query's id and question, and one record."""
    found = dns.parse(query("WWW.Example.org", tail=bytes(11)))
    assert (found.name, found.kind) == ("www.example.org", dns.A)
    made = dns.answer(found, dns.NO_ERROR, b"\xc6\x12\x00\x10")
    identity, flags, questions, answers, *_ = struct.unpack_from("!6H", made)
    assert (identity, flags, questions, answers) == (0xABCD, 0x8180, 1, 1)
    assert made[12:33] == query("WWW.Example.org")[12:33]
    assert made.endswith(b"\xc6\x12\x00\x10")


def test_an_error_has_no_record():
    """The response code is in the header."""
    made = dns.answer(dns.parse(query("x.test")), dns.NO_NAME)
    assert struct.unpack_from("!6H", made)[1:4] == (0x8183, 1, 0)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        bytes(11),
        query("x.test", flags=0x8000),
        query("x.test", questions=2),
        query("x.test")[:-1],
        query("x.test")[:14],
        struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\xc0\x0c\0\x01\0\x01",
        query(".".join(["a" * 63] * 5)),
    ],
)
def test_anything_else_is_no_query(message):
    """Answers, cut and too long names, and pointers."""
    assert dns.parse(message) is None


@pytest.mark.parametrize(
    "message",
    [
        query("x.test", family=3),
        query("a b.test"),
        query("a\x7f.test"),
        query("x\n.test"),
    ],
)
def test_a_question_that_no_host_answers_has_no_name(message):
    """Other classes and names with spaces are answered, but never looked up."""
    assert dns.parse(message)[1:3] == ("", 0)


def test_random_messages():
    """No message raises anything."""
    chance = random.Random(7)
    valid = bytearray(query("www.example.org"))
    accepted = 0
    for _ in range(20_000):
        message = bytearray(valid)
        for _ in range(chance.randrange(1, 4)):
            message[chance.randrange(len(message))] = chance.randrange(256)
        found = dns.parse(bytes(message[: chance.randrange(len(message) + 1)] or message))
        if found is not None:
            accepted += 1
            assert found.name.isprintable()
            dns.answer(found, dns.NO_ERROR, bytes(4))
    assert accepted


@pytest.mark.parametrize("mark", [":", "#", "@", "/", "%", "?", "[", "\\"])
def test_a_name_with_marks_of_an_address_is_not_looked_up(mark):
    """A proxy could take "evil.org:443#.example.org", which "*.example.org" allows, for another."""
    assert dns.parse(query(f"evil{mark}x.example.org"))[1:3] == ("", 0)
