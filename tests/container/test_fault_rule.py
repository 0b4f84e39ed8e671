"""What a fault decides for each frame, and the frames that reset connections."""

from __future__ import annotations

import random
import socket
import struct

import pytest

from pytest_sandbox.container.fault_values import FaultValues
from pytest_sandbox.errors import SettingsError
from pytest_sandbox.launcher import tcp_reset
from pytest_sandbox.launcher.fault_rule import Rule
from pytest_sandbox.linux.packet_socket import VNET_HEADER

FLOW, OTHER = b"a" * 12, b"b" * 12
IN = (2, False)


def rule(**keywords):
    values = FaultValues.read({"seed": 1, **keywords})
    return Rule({"id": 1, **values.to_message()})


def decide(one, flow=FLOW, now=0.0, *, is_arp=False, size=1000):
    return one.decide(flow, IN, size, now, is_arp=is_arp)


def lost(one, count=300):
    return [number for number in range(count) if not decide(one).copies]


def test_the_same_seed_loses_the_same_frames():
    """The n-th frame of a flow depends on the seed alone, and about as many are lost as asked."""
    assert lost(rule(loss=0.1)) == lost(rule(loss=0.1))
    assert lost(rule(loss=0.1)) != lost(rule(loss=0.1, seed=2))
    assert 10 < len(lost(rule(loss=0.1))) < 60


def test_other_flows_and_arp_change_nothing():
    """Frames between others, and ARP packets, do not change which ones are lost."""
    one, found = rule(loss=0.1), []
    for number in range(300):
        decide(one, OTHER)
        assert decide(one, is_arp=True).copies
        if not decide(one).copies:
            found.append(number)
    assert lost(rule(loss=0.1)) == found


def test_the_latency_varies_by_the_jitter():
    """Every delay is within the jitter, and they differ."""
    one = rule(latency="50ms", jitter="5ms")
    found = {decide(one).delay for _ in range(100)}
    assert len(found) > 50
    assert 0.045 <= min(found) <= max(found) <= 0.055


def test_frames_wait_for_the_rate():
    """Each frame waits for those before it; over the limit of the queue they are dropped."""
    one = rule(rate="1mbit")
    assert [pytest.approx(0.008), pytest.approx(0.016)] == [decide(one).delay for _ in range(2)]
    assert [pytest.approx(0.008)] == [decide(one, now=5.0).delay]
    assert 0 == [decide(one, now=5.0) for _ in range(2000)][-1].copies
    assert one.counters["overflowed"] > 0


def test_a_reordered_frame_is_not_delayed():
    """It is sent at once; a duplicate is sent twice."""
    assert (1, 0.0, False) == decide(rule(latency=1, reorder=1))
    assert 2 == decide(rule(duplicate=1)).copies


@pytest.mark.parametrize(
    ("keywords", "key"),
    [
        ({"loss": 2}, "loss"),
        ({"loss": -0.1}, "loss"),
        ({"loss": True}, "loss"),
        ({"loss": float("nan")}, "loss"),
        ({"loss": "101%"}, "loss"),
        ({"latency": "50"}, "latency"),
        ({"latency": "50 min"}, "latency"),
        ({"latency": None}, "latency"),
        ({"latency": 1, "jitter": 2}, "jitter"),
        ({"reorder": 0.1}, "reorder"),
        ({"rate": "1mb"}, "rate"),
        ({"rate": 1}, "rate"),
        ({"reset": 1}, "reset"),
        ({"loss": 1, "seed": -1}, "seed"),
        ({"lost": 1}, "fault"),
        ({}, "fault"),
        ({"latency": 0}, "fault"),
    ],
)
def test_an_invalid_value_is_refused(keywords, key):
    """The error names the key, the value and the accepted form."""
    with pytest.raises(SettingsError, match="accepted: ") as caught:
        FaultValues.read(keywords)
    assert key == caught.value.key


KEY = (socket.inet_aton("172.30.0.2"), 7, socket.inet_aton("172.30.0.3"), 40000)


def test_a_segment_is_read_as_it_was_written():
    """The checksums are those of RFC 1071."""
    data = tcp_reset.frame(b"m" * 12, KEY, 5, 4, 6)
    assert (b"m" * 12, KEY, 5, 6, 4, 0) == tcp_reset.parse(data)
    for part in (
        data[VNET_HEADER + 14 :][:20],
        KEY[0] + KEY[2] + struct.pack("!HH", 6, 20) + data[-20:],
    ):
        total = sum(struct.unpack(f"!{len(part) // 2}H", part))
        assert 0xFFFF == (total & 0xFFFF) + (total >> 16)


def test_malformed_frames_are_no_segments():
    """A frame of any content and length is either a segment or None."""
    source = random.Random(1)
    data = tcp_reset.frame(b"m" * 12, KEY, 5, 4, 6)
    assert [None] * len(data) == [tcp_reset.parse(data[:length]) for length in range(len(data))]
    for _ in range(3000):
        changed = bytearray(data)
        for _ in range(3):
            changed[source.randrange(len(data))] = source.randrange(256)
        tcp_reset.parse(bytes(changed))


def test_only_frames_of_the_connection_are_answered():
    """A new connection of the same ports is left alone."""
    resets = tcp_reset.Resets()
    resets.add(KEY, 3)
    other = (*KEY[:3], 40001)
    assert resets.answer(tcp_reset.frame(b"m" * 12, other, 5, 16)) is None
    found = resets.answer(tcp_reset.frame(b"s" * 6 + b"t" * 6, KEY, 5, 16, 6))
    assert (3, True) == found[:2]
    to_sender, to_receiver = map(tcp_reset.parse, found[2:])
    assert (b"t" * 6 + b"s" * 6, 6) == (to_sender.ethernet, to_sender.sequence)
    assert (KEY, 5) == (to_receiver.key, to_receiver.sequence)
    assert resets.answer(tcp_reset.frame(b"m" * 12, KEY, 5, 2)) is None
    assert not resets
