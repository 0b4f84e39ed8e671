"""Faults of networks, with real traffic."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from crash import leftovers
from descriptors import open_descriptors

from pytest_sandbox import Container, Network, SettingsError, SetupError

pytestmark = pytest.mark.needs("bridge")

SERVER = """
import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(1 << 16):
            self.request.sendall(data[-1:])
class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    def handle_error(self, *_): pass
print("up", flush=True)
with Server(("", 7), Echo) as server:
    print("up", flush=True)
    server.serve_forever()
"""
RECEIVER = """
import socket, sys
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.bind(("", 9))
print("up", flush=True)
while (data := one.recv(100)) != b"end":
    print(data.decode(), flush=True)
"""
CLIENT = """
import socket
one = socket.create_connection(("db", 7))
print("up", flush=True)
try:
    one.recv(1)
except ConnectionResetError:
    print("reset", flush=True)
"""


@pytest.fixture
def pair(net):
    with Container(network=net, hostname="db") as db, Container(network=net, hostname="app") as app:
        yield db, app


@pytest.fixture
def served(pair):
    db, app = pair
    with program(db, SERVER) as server:
        assert "up\n" == server.stdout.readline()
        yield db, app
        server.kill()


def program(container, code):
    one = container.popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert "up\n" == one.stdout.readline()
    return one


def ask(host, timeout=20.0):
    """Return what an echo server answers, or the name of the error."""
    try:
        with socket.create_connection((host, 7), timeout) as one:
            one.sendall(b"x")
            return one.recv(1)
    except OSError as error:
        return type(error).__name__


def send_much(host, size):
    with socket.create_connection((host, 7), 20) as one:
        one.sendall(bytes(size))
        return one.recv(1)


def send_numbers(host, count):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect((host, 9))
        for number in range(count):
            one.send(str(number).encode())


def send_end(host):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"end", (host, 9))


def received(net, db, app, **fault):
    """Return the numbers of 100 datagrams that arrive with a fault."""
    with program(db, RECEIVER) as receiver:
        app.call(ask, "db", 1)  # ARP
        with net.fault("db", **fault):
            app.call(send_numbers, "db", 100)
        app.call(send_end, "db")
        return [int(line) for line in receiver.communicate(timeout=30)[0].split()]


def test_a_fault_delays_what_is_sent_and_received(served, net):
    """Frames in both directions are counted, and the connection works."""
    with net.fault("db", latency="5ms", jitter="1ms") as fault:
        assert b"x" == served[1].call(ask, "db")
        assert net.counters["db"].delayed >= 6  # a handshake, and a segment each way
        assert f"seed={fault.seed}" in repr(fault)
    after = net.counters["db"]
    assert b"x" == served[1].call(ask, "db")
    assert after == net.counters["db"]


def test_the_same_seed_loses_the_same_datagrams(pair, net):
    """Two runs with one seed lose the same; another seed loses others."""
    first, again, other = (received(net, *pair, loss=0.3, seed=seed) for seed in (1, 1, 2))
    assert 0 < len(first) < 100
    assert first == again != other


def test_datagrams_are_duplicated_and_reordered(pair, net):
    """Each arrives twice; or in another order, but all of them."""
    assert [number for number in range(100) for _ in range(2)] == received(
        net, *pair, duplicate=1, seed=1
    )
    found = received(net, *pair, latency="50ms", reorder=0.2, seed=1)
    assert sorted(found) == list(range(100)) != found


def test_jitter_keeps_the_order(pair, net):
    """Delayed datagrams arrive in the order in which they were sent."""
    assert list(range(100)) == received(net, *pair, latency="20ms", jitter="20ms", seed=1)


def test_data_arrives_in_spite_of_loss_and_a_rate(served, net):
    """TCP repeats what was lost."""
    with net.fault("db", loss=0.05, rate="50mbit", seed=3):
        assert served[1].call(send_much, "db", 1 << 20)
    assert net.counters["db"].lost > 0


def test_a_fault_of_a_pair_affects_no_other(served, net):
    """With the pair cut, a third container reaches both; at the end, they reach each other."""
    with Container(network=net, hostname="other") as third:
        with net.cut("app", "db"):
            assert "TimeoutError" == served[1].call(ask, "db", 0.3)
            assert b"x" == third.call(ask, "db")
        assert b"x" == served[1].call(ask, "db")
    assert net.counters["app-db"].lost > 0


def test_heal_ends_all_faults(served, net):
    """The end of a fault that was healed does nothing."""
    with net.cut("app", "db"), net.fault("db", loss=1):
        net.heal()
        assert b"x" == served[1].call(ask, "db")


@pytest.mark.parametrize("names", [("db",), ("app", "db"), ("app",)])
def test_open_connections_are_reset(served, net, names):
    """An idle connection gets RST at both ends; a new one works during the fault."""
    with program(served[1], CLIENT) as client, net.fault(*names, reset=True):
        assert "reset\n" == client.communicate(timeout=20)[0]
        assert b"x" == served[1].call(ask, "db")
        assert 1 == net.counters["-".join(names)].reset


def test_a_reset_of_a_pair_leaves_other_connections(served, net):
    """The connection of a third container stays open."""
    with Container(network=net, hostname="other") as third, program(third, CLIENT) as client:
        with net.fault("db", "app", reset=True):
            pass
        assert client.poll() is None
        client.kill()


def test_faults_of_the_setting_apply_from_the_start():
    """They apply to a container as it connects, also to the next one of its name."""
    with Network(faults={("app", "db"): {"loss": 1}}) as net:
        for _ in range(2):
            with (
                Container(network=net, hostname="db") as db,
                Container(network=net, hostname="app") as app,
                program(db, SERVER) as server,
            ):
                assert "TimeoutError" == app.call(ask, "db", 0.3)
                server.kill()
        assert net.counters["app-db"].lost > 1


@pytest.mark.needs("root")
def test_a_fault_outlasts_a_commit(pair, net):
    """A container that goes on with a new init has the fault."""
    with net.cut("app", "db"):
        pair[0].write_text("/srv/one", "1")
        pair[0].commit()
        with program(pair[0], SERVER) as server:
            assert "TimeoutError" == pair[1].call(ask, "db", 0.3)
            server.kill()


def test_an_unknown_container_is_refused(pair, net):
    """The error lists those on the network."""
    known = r"a container on the network .*: db \(172.30.0.2\), app \(172.30.0.3\)"
    for wrong in (lambda: net.fault("bd", loss=1), lambda: net.cut("db", "web")):
        with pytest.raises(SettingsError, match=known):
            wrong()
    with pytest.raises(SettingsError, match="two different containers"):
        net.cut("db", pair[0])
    with pytest.raises(SettingsError, match="loss=2 is not valid; accepted: a part"):
        net.fault("db", loss=2)
    with pytest.raises(SettingsError, match="loss"):
        Network(faults={"db": {"loss": 2}})
    assert {} == net.counters


def relays():
    launcher = leftovers.launcher_of(os.getpid())
    return set(leftovers.children_of(launcher))


@pytest.mark.needs("root")
def test_a_relay_that_is_killed_leaves_nothing(served, net):
    """At the end of the fault the container is connected again, and the next fault works."""
    before = relays()
    with net.fault("db", latency=0.01):
        (relay,) = relays() - before
        os.kill(relay, signal.SIGKILL)
    assert b"x" == served[1].call(ask, "db")
    with net.fault("db", latency=0.01):
        assert b"x" == served[1].call(ask, "db")
    with net.fault("db", latency=0.01):
        (relay,) = relays() - before - {relay}
        os.kill(relay, signal.SIGKILL)
        with pytest.raises(SetupError, match="its relay has ended"):
            net.fault("app", loss=1)


VICTIM = """
import sys
from pytest_sandbox import Container, Network
with Network() as net, Container(network=net, hostname="db") as db:
    net.fault("db", latency=1)
    print("up", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.needs("root")
def test_a_killed_client_leaves_no_relay():
    """The relay ends with the client."""
    code = [sys.executable, "-c", VICTIM]
    with subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as victim:
        assert "up\n" == victim.stdout.readline()
        victim.kill()
    leftovers.await_no_processes(victim.pid)
    assert [] == leftovers.of(victim.pid)


def test_descriptors_are_closed():
    """Faults, and the containers that have them, leave no descriptor."""
    counts = []
    for _ in range(3):
        with Network() as net, Container(network=net, hostname="db") as db:
            for _ in range(2):
                with net.fault("db", latency=1):
                    pass
            net.fault("db", loss=1)
            db.run(["true"], check=True)
        counts.append(open_descriptors())
    assert counts[1] == counts[2]


def test_a_container_is_disconnected_and_connected(served, net):
    """It keeps running without a device, and gets another address; others find its name."""
    db, app = served
    net.disconnect(db)
    assert (None, ["app"]) == (db.ip_address, list(net.addresses))
    assert "lo" in db.call(lambda: [name for _number, name in socket.if_nameindex()])
    assert "eth0" not in db.call(lambda: [name for _number, name in socket.if_nameindex()])
    with pytest.raises(SettingsError, match="a container on the network"):
        net.disconnect(db)
    net.connect(db)
    assert b"x" == app.call(ask, "db")
    with pytest.raises(SettingsError, match="disconnect it"):
        net.connect(db)


def test_traffic_is_captured(monkeypatch):
    """The capture has the datagrams since a time, in the format of pcap."""
    from pytest_sandbox.container import network_capture

    monkeypatch.setattr(network_capture, "_enabled", True)
    with Network() as net, Container(network=net) as one, Container(network=net) as other:
        for _ in range(5):
            one.call(send_end, other.ip_address)
        assert b"\xd4\xc3\xb2\xa1" == net.captured(0)[:4]
        assert len(net.captured(0)) > 24 + 5 * (16 + 14 + 20 + 8 + 3)
        assert 24 == len(net.captured(time.time() + 60))
