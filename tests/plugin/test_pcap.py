"""``--sandbox-pcap``."""

from __future__ import annotations

import struct

import pytest

pytestmark = pytest.mark.needs("root", "bridge")

SUITE = """
import socket
import pytest
from pytest_sandbox import Container, Network

net = Network("shared")

@pytest.fixture(scope="session")
def db(container_factory):
    return container_factory(network=net, hostname="db").start()

def send(text, host):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(text, (host, 9))

@pytest.mark.container(network=net)
@pytest.mark.parametrize("passes", [True, False])
def test_inside(db, passes):
    send(b"inside %d" % passes, "db")
    assert passes

def test_outside():
    with Network("own") as own, Container(network=own) as one, Container(network=own) as other:
        one.call(send, b"outside", other.ip_address)
        assert 0
"""


def packets(path):
    """Return the packets of a pcap file (pcap-savefile(5))."""
    data = path.read_bytes()
    magic, _major, _minor, _zone, _digits, _most, link = struct.unpack_from("=IHHiIII", data)
    assert (0xA1B2C3D4, 1) == (magic, link)
    found, at = [], 24
    while at < len(data):
        _seconds, _microseconds, kept, length = struct.unpack_from("=IIII", data, at)
        assert kept == length
        found.append(data[at + 16 : at + 16 + kept])
        at += 16 + kept
    assert at == len(data)
    return found


@pytest.mark.parametrize(
    ("option", "texts"),
    [
        ("none", []),
        ("failed", [b"inside 0", b"outside"]),
        ("all", [b"inside 0", b"inside 1", b"outside"]),
    ],
)
def test_traffic_is_saved_as_the_option_says(run, pytester, option, texts):
    """Each file has the traffic of its own test, and the report of a failed test names it."""
    result = run(SUITE, f"--sandbox-pcap={option}", sandbox=False)
    result.assert_outcomes(passed=1, failed=2)
    found = sorted(pytester.path.glob("sandbox-pcap/*.pcap"))
    assert len(texts) == len(found)
    sent = [
        [text for text in (b"inside 0", b"inside 1", b"outside") if text in b"".join(packets(one))]
        for one in found
    ]
    assert sorted(map(list, zip(texts, strict=True))) == sorted(sent)
    shown = result.stdout.str().count(".shared.pcap") + result.stdout.str().count(".own.pcap")
    assert (0 if option == "none" else 2) == shown
