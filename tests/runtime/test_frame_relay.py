"""The relay of frames: what a container sends is untrusted."""

from __future__ import annotations

import random
import socket
from types import SimpleNamespace

import pytest

from pytest_sandbox.launcher import frame_relay
from pytest_sandbox.launcher.fault_rule import MAX_FLOWS

FAULT = {
    "id": 1,
    "latency": 10.0,
    "jitter": 1.0,
    "loss": 0.1,
    "duplicate": 0.1,
    "reorder": 0.1,
    "rate": 0.0,
    "seed": 1,
    "cut": False,
    "at": [[1, ""]],
}


@pytest.fixture
def relay():
    """A relay of one container, with a fault."""
    ours, theirs = socket.socketpair()
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
    made = frame_relay._Relay(SimpleNamespace(fileno=ours.fileno))
    for pair in pairs:
        pair[0].setblocking(False)  # as the packet sockets
    made._do_join({"number": 1}, [pair[0].detach() for pair in pairs])
    made._do_rules({"rules": [FAULT]}, [])
    with ours, theirs, pairs[0][1], pairs[1][1]:
        yield made
        made._do_leave({"number": 1}, [])


def outward(relay):
    return next(one for one in relay._directions.values() if one.key == (1, True))


@pytest.mark.parametrize("size", [60, 1514, 65549])
def test_waiting_frames_take_bounded_memory(relay, size):
    """Small frames count with what each takes in addition, so that sending them takes little
    time.
    """
    frame = bytes(size)
    for _ in range(40_000):
        relay._forward(outward(relay), frame, 1, float("inf"))
    cost = size + frame_relay._FRAME_COST
    assert len(relay._queue) == frame_relay._MAX_WAITING // cost + 1
    relay._send_due(float("inf"))
    assert 0 == outward(relay).waiting


def test_malformed_frames(relay):
    """Frames of any size and content are passed on or dropped, and the state of senders that do
    not exist is bounded.
    """
    source = random.Random(7)
    heads = [b"\x08\x00\x45", b"\x08\x00\x4f", b"\x08\x06", b"\x81\x00\x00\x05\x08\x00", b""]
    relay._resets.add((b"\x0a\0\0\1", 1, b"\x0a\0\0\2", 2), 1)
    for _ in range(3 * MAX_FLOWS):
        content = source.choice(heads) + source.randbytes(source.choice([0, 1, 19, 20, 40, 1500]))
        frame = source.randbytes(22) + content
        relay._handle(outward(relay), frame[: source.choice([0, 5, 11, 23, 9999, 9999])])
    assert len(outward(relay).last) <= MAX_FLOWS
    assert len(relay._rules[1]._flows) <= MAX_FLOWS
    assert relay._rules[1].counters["frames"] == 3 * MAX_FLOWS
