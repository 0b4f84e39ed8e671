"""The relays of connections: what a container sends takes bounded memory and descriptors."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from pytest_sandbox.launcher import port_relay, relay_loop
from pytest_sandbox.launcher.egress_addresses import is_of_host
from pytest_sandbox.launcher.egress_attempts import Attempts
from pytest_sandbox.launcher.proxy import Proxy
from pytest_sandbox.launcher.relay_loop import Connection, RelayLoop


@pytest.fixture
def opened():
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def loop(opened):
    ours, _theirs = map(opened.enter_context, socket.socketpair())
    return RelayLoop(SimpleNamespace(fileno=ours.fileno))


def connect(loop, opened):
    """Return the outer end of a relayed connection whose inner end nobody reads."""
    listening = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    client = opened.enter_context(socket.create_connection(listening.getsockname()))
    client.setblocking(False)
    accepted = listening.accept()[0]
    silent = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    loop.room -= 1
    made = Connection(loop, accepted, [silent.getsockname()])
    made.connect()
    while not hasattr(made, "_directions"):
        turn(loop)
    return client, made


def turn(loop):
    for fd, events in loop._poll.poll(0.1):
        loop._handlers[fd](events)


def send_all(loop, clients):
    """Send until neither the relay nor the kernel takes any more."""
    quiet = 0
    while quiet < 3:
        sent = 0
        for client in clients:
            try:
                sent += client.send(bytes(1 << 20))
            except BlockingIOError:
                continue
        turn(loop)
        quiet = 0 if sent else quiet + 1


def test_what_waits_is_bounded_for_all_connections(loop, opened, monkeypatch):
    """Once much waits to be written, little is read of each connection; its end is counted."""
    monkeypatch.setattr(relay_loop, "_MOST_WAITING", 1 << 19)
    monkeypatch.setattr(relay_loop, "_MOST_LARGE", 0)  # small buffers of the kernel, too
    pairs = [connect(loop, opened) for _ in range(16)]
    send_all(loop, [client for client, _made in pairs])
    most = relay_loop._MOST_WAITING + relay_loop._CHUNK + len(pairs) * relay_loop._SMALL_CHUNK
    assert 0 < loop.waiting <= most
    for _client, made in pairs:
        made._close(socket.socket.close)
    assert (0, 0) == (loop.waiting, loop.connections)


def test_buffers_of_many_connections_are_small(loop, opened, monkeypatch):
    """The kernel enlarges the buffers of the first connections only."""
    monkeypatch.setattr(relay_loop, "_MOST_LARGE", 1)
    _client, first = connect(loop, opened)
    _client, second = connect(loop, opened)
    sizes = [
        one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) for one in (first.inner, second.inner)
    ]
    assert sizes[1] == 2 * relay_loop._SMALL_BUFFER != sizes[0]  # doubled (socket(7))
    for made in (first, second):
        made._close(socket.socket.close)


def test_peers_of_a_udp_port_take_descriptors(loop, opened):
    """A new peer replaces the oldest one when no descriptor is left, or gets no answer."""
    outer = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    outer.bind(("127.0.0.1", 0))
    outer.setblocking(False)
    port = port_relay._UdpPort(loop, outer, ["127.0.0.1"], 9)
    peers = [opened.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(3)]
    loop.room = 2
    for one in peers:
        one.sendto(b"x", outer.getsockname())
        port.accept(0)
    assert [one.getsockname()[1] for one in peers[1:]] == [peer[1] for peer in port._peers]
    assert 0 == loop.room
    port._forget(next(iter(port._peers)))
    port._forget(next(iter(port._peers)))
    loop.room = 0
    peers[0].sendto(b"x", outer.getsockname())
    port.accept(0)
    assert {} == port._peers


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.0.1",
        "0.0.0.0",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "fe80::1%lo",
        "fec0::1",
        "ff02::1",
    ],
)
def test_special_addresses_are_the_hosts(address):
    """A name does not lead to any of them, in whatever form."""
    assert is_of_host(address)


@pytest.mark.parametrize("address", ["203.0.113.5", "2001:db8::5", "64:ff9b::cb00:7105"])
def test_addresses_of_others_are_not(address):
    """They may be connected to."""
    assert not is_of_host(address)


@pytest.mark.parametrize(
    "name",
    [
        *("localhost", "localhost.", "x.localhost", "127.0.0.1", "127.1", "2130706433"),
        *("0x7f.1", "0177.0.0.1", "", socket.gethostname().lower()),
    ],
)
def test_a_proxy_is_not_asked_for_the_host(name):
    """These names would lead to the proxy's own machine, which may be this host."""
    proxy = Proxy("proxy.test", 3128, "", ())
    assert not proxy.is_used_for(name)
    assert proxy.is_used_for("pypi.test")
    assert proxy.is_used_for("localhost.test")


def test_a_scan_of_many_ports_looks_up_few_programs():
    """When no more kinds of attempts are counted, no program is looked up for them."""
    attempts = Attempts()
    looked_up = 0
    for port in range(1, 5000):
        looked_up += attempts.wants_program("203.0.113.9", port)
        attempts.add("203.0.113.9", port, "udp", "scan", "UDP is not forwarded")
    assert (1000, 3999) == (looked_up, attempts.left_out)
