"""Published ports: reachable from the host, and gone with the container."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from pytest_sandbox import Container, Network, SettingsError

pytestmark = pytest.mark.needs("containers")

TIMEOUT = 30
#: Answers each TCP connection, once its peer has sent everything, with the SHA-256 of that and
#: with as many bytes as a decimal number in it says; answers each datagram with itself.
SERVER = """
import hashlib, socket, sys, threading

def serve(connection):
    digest, count = hashlib.sha256(), 0
    while data := connection.recv(1 << 18):
        digest.update(data)
        count = int(data) if len(data) < 12 and data.isdigit() else count
    connection.sendall(digest.digest())
    while count > 0:
        connection.sendall(bytes(min(count, 1 << 18)))
        count -= 1 << 18
    connection.close()

def answer(datagrams):
    while True:
        data, peer = datagrams.recvfrom(65536)
        datagrams.sendto(data, peer)

host, port = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ":" in host else socket.AF_INET
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("", port))
threading.Thread(target=answer, args=(datagrams,), daemon=True).start()
listening = socket.create_server((host, port), family=family)
print("listening", flush=True)
while True:
    threading.Thread(target=serve, args=(listening.accept()[0],)).start()
"""


def serve(container, port=5432, host=""):
    """Start the server inside, and wait until it listens."""
    container.popen([sys.executable, "-SE", "-c", SERVER, host, str(port)], log=True)
    container.wait_for(port=port, timeout=TIMEOUT)


def connect(host, port):
    return socket.create_connection((host, port), timeout=TIMEOUT)


def exchange(connection, *parts):
    """Send the parts, shut down, and return everything that is answered."""
    with connection, connection.makefile("rb") as file:
        for part in parts:
            connection.sendall(part)
        connection.shutdown(socket.SHUT_WR)
        return file.read()


def digest(data):
    return hashlib.sha256(data).digest()


def open_sockets():
    """Return the sockets of this process."""
    links = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(os.readlink(path))
    return {link for link in links if link.startswith("socket:")}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


@pytest.mark.vm
def test_a_port_is_on_an_address_of_the_containers_own():
    """Two containers publish the same port, each on its own loopback address."""
    with Container(publish=["5432"]) as one, Container(publish=5432) as two:
        assert one.host_address != two.host_address
        assert ({5432: 5432}, {5432: 5432}) == (one.ports, two.ports)
        for container in (one, two):
            serve(container)
            data = container.id.encode()
            connection = connect(container.host_address, container.ports[5432])
            assert digest(data) == exchange(connection, data)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_of_the_host_is_requested(host):
    """`HOST_PORT:PORT` is reachable on both loopbacks of the host, and on the own address."""
    port = free_port()
    with Container(publish=[f"{port}:80"]) as container:
        serve(container, 80)
        assert {80: port} == container.ports
        assert digest(b"x") == exchange(connect(host, port), b"x")
        assert digest(b"y") == exchange(connect(container.host_address, port), b"y")


@pytest.mark.parametrize("item", ["127.0.0.1:0:80", "127.0.0.1::80", "[::1]::80"])
def test_any_free_port_is_chosen(item):
    """Port 0, or none after an address, is one that is free."""
    with Container(publish=[item]) as container:
        serve(container, 80)
        host = "::1" if "[" in item else "127.0.0.1"
        assert digest(b"x") == exchange(connect(host, container.ports[80]), b"x")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_server_on_the_loopback_inside_is_reached(host):
    """A server that listens on a loopback address inside alone is reachable."""
    with Container(publish=["5432"]) as container:
        serve(container, host=host)
        assert digest(b"x") == exchange(connect(container.host_address, 5432), b"x")


@pytest.mark.needs("bridge")
def test_a_server_on_its_network_alone_is_reached():
    """A server that listens on its address on a network alone is reachable."""
    with Network() as net, Container(network=net, publish=["5432"]) as container:
        serve(container, host=container.ip_address)
        assert digest(b"x") == exchange(connect(container.host_address, 5432), b"x")


def test_datagrams_are_answered():
    """UDP is published beside TCP of the same number; each peer gets its own answers."""
    with Container(publish=["53/udp", "53"]) as container:
        serve(container, 53)
        assert {"53/udp": 53, 53: 53} == container.ports
        with ExitStack() as opened:
            peers = [
                opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                for _ in range(300)  # more than the relay keeps: the latest are answered
            ]
            for number, peer in enumerate(peers):
                peer.settimeout(TIMEOUT)
                peer.sendto(b"%d" % number, (container.host_address, 53))
                assert b"%d" % number == peer.recv(100)
        assert digest(b"x") == exchange(connect(container.host_address, 53), b"x")


def test_a_gigabyte_is_transferred():
    """A gigabyte in each direction arrives whole."""
    with Container(publish=["5432"]) as container:
        serve(container)
        connection = connect(container.host_address, 5432)
        part, count = os.urandom(1 << 20), 1 << 10
        expected = hashlib.sha256()
        with connection, connection.makefile("rb") as file:
            for _ in range(count):
                connection.sendall(part)
                expected.update(part)
            connection.shutdown(socket.SHUT_WR)
            assert expected.digest() == file.read()
        with connect(container.host_address, 5432) as receiving:
            receiving.sendall(b"%d" % (1 << 30))
            receiving.shutdown(socket.SHUT_WR)
            received, buffer = 0, bytearray(1 << 20)
            while read := receiving.recv_into(buffer):
                received += read
        assert (1 << 30) + 32 == received


def test_many_connections_at_once():
    """Two hundred connections that are open at the same time each get their own answer."""
    with Container(publish=["5432"]) as container:
        serve(container)
        connections = [connect(container.host_address, 5432) for _ in range(200)]
        answers = [exchange(one, b"%d" % n) for n, one in reversed(list(enumerate(connections)))]
        assert [digest(b"%d" % n) for n in reversed(range(200))] == [one[:32] for one in answers]


def test_without_a_server_a_connection_is_reset():
    """While nothing listens inside, a connection is reset, and later ones work."""
    with Container(publish=["5432"]) as container:
        with (
            pytest.raises(ConnectionResetError),  # by recv(2), or by connect(2) already
            connect(container.host_address, 5432) as connection,
        ):
            connection.recv(1)
        serve(container)
        assert digest(b"x") == exchange(connect(container.host_address, 5432), b"x")


def test_a_reset_is_passed_on():
    """When the server inside resets a connection, so does the relay."""
    code = (
        "import socket, struct; c = socket.create_server(('', 80)).accept()[0]; c.recv(1);"
        "c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); c.close()"
    )
    with Container(publish=["80"]) as container:
        container.popen([sys.executable, "-SE", "-c", code])
        container.wait_for(port=80, timeout=TIMEOUT)
        with connect(container.host_address, 80) as connection:
            connection.sendall(b"x")
            with pytest.raises(ConnectionResetError):
                connection.recv(1)


def test_after_a_commit_the_ports_stay():
    """After a commit, the container's new processes are reached on the same address."""
    with Container(publish=["5432"]) as container:
        address = container.host_address
        container.write_text("/etc/committed", "")
        container.commit()
        serve(container)
        assert address == container.host_address
        assert digest(b"x") == exchange(connect(address, 5432), b"x")


def test_a_port_in_use_is_refused():
    """A host port in use is an error with the item, the address and what to do; nothing is left."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        before = open_sockets()
        with pytest.raises(SettingsError, match=rf"127\.0\.0\.1:{port} is in use") as caught:
            Container(publish=[f"{port}:80"]).start()
        assert ("publish", f"{port}:80") == (caught.value.key, caught.value.value)
        assert before == open_sockets()


def test_an_address_of_another_host_is_refused():
    """An address that this host does not have is an error."""
    with pytest.raises(SettingsError, match=r"192\.0\.2\.1:8080"):
        Container(publish=["192.0.2.1:8080:80"]).start()


def test_ports_are_free_when_the_container_has_closed():
    """Right after `close`, another container publishes the same port of the host, also while a
    fork of this process is alive.
    """
    port, (reader, writer), forks = free_port(), os.pipe(), []
    try:
        for _ in range(3):
            with Container(publish=[f"{port}:80"]) as container:
                serve(container, 80)
                assert digest(b"x") == exchange(connect("127.0.0.1", port), b"x")
                if not (pid := os.fork()):
                    os.close(writer)
                    os.read(reader, 1)
                    os._exit(0)
                forks.append(pid)
    finally:
        os.close(writer)
        os.close(reader)
    for pid in forks:
        os.waitpid(pid, 0)
    with pytest.raises(ConnectionRefusedError):
        connect("127.0.0.1", port)


def test_containers_of_threads_have_different_addresses():
    """Containers that start at the same time get different addresses."""
    with ExitStack() as opened, ThreadPoolExecutor(8) as threads:
        containers = [opened.enter_context(Container(publish=["5432"])) for _ in range(2)]
        more = [Container(publish=["5432"]) for _ in range(8)]
        containers += [opened.enter_context(one) for one in threads.map(Container.start, more)]
        assert 10 == len({container.host_address for container in containers})


def test_nothing_is_left_after_sigkill():
    """When the client is killed, the port of the host is free."""
    port = free_port()
    script = (
        "import signal\nfrom pytest_sandbox import Container\n"
        f"c = Container(publish=['{port}:80']).start()\n"
        "print(c.host_address, flush=True)\nsignal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as p:
        try:
            address = p.stdout.readline().strip()
            with suppress(
                ConnectionResetError
            ):  # nothing listens inside, so the relay may be first
                connect(address, port).close()
        finally:
            p.kill()
    wait_until_refused(("127.0.0.1", port))
    wait_until_refused((address, port))


def test_the_command_line_publishes_ports():
    """`run -p` publishes a port; one in use is an error that names the flag, with status 125."""
    port = free_port()
    command = [sys.executable, "-m", "pytest_sandbox", "run", "-p", f"{port}:80", "host"]
    server = [sys.executable, "-SE", "-c", SERVER, "", "80"]
    with subprocess.Popen([*command, *server], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert "listening\n" == process.stdout.readline()
            assert digest(b"x") == exchange(connect("127.0.0.1", port), b"x")
            second = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
            assert 125 == second.returncode
            assert f"--publish '{port}:80' is not valid" in second.stderr
        finally:
            process.terminate()


def wait_until_refused(address):
    """Connect until that is refused: each connection ends when the relay does."""
    for _ in range(1000):
        try:
            with socket.create_connection(address, timeout=TIMEOUT) as connection:
                connection.recv(1)
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            continue
    pytest.fail(f"{address} is still open")


def test_a_function_inside_has_no_socket_of_the_relay():
    """A function inside cannot reach the relay's socket."""
    with Container(publish=["5432"]) as container:
        path = f"/proc/self/fd/{container.handle.published.channel}"

        def link():
            return os.readlink(path) if os.path.lexists(path) else ""

        assert link().startswith("socket:")
        assert link() != container.call(link)


def test_without_publish_there_is_nothing():
    """A container without published ports has no address on the host."""
    with Container() as container:
        assert (None, {}) == (container.host_address, container.ports)


def test_the_hosts_network_needs_no_published_ports():
    """`publish` contradicts `network="host"`."""
    with pytest.raises(SettingsError, match='network="host"'):
        Container(network="host", publish=["80"])
