"""The name server of a network: what programs that query DNS find, and what they cannot do."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
from crash import leftovers

from pytest_sandbox import Container, Network, SettingsError
from pytest_sandbox.launcher import dns_messages as dns
from pytest_sandbox.linux import process

pytestmark = pytest.mark.needs("bridge")

codecs.lookup("idna")  # imported here for functions in a root without the standard library

SERVER = ("127.0.0.11", 53)
A, PTR, AAAA = 1, 12, 28
NO_NAME = 3


def question(name, kind=A, identity=7):
    head = struct.pack("!6H", identity, 0x0100, 1, 0, 0, 0)
    return head + dns.encode_name(name) + struct.pack("!HH", kind, 1)


def found_in(reply, query):
    """Return the data of the record, or the response code if there is none."""
    identity, flags, questions, answers, *_ = struct.unpack_from("!6H", reply)
    assert (identity, questions, flags >> 15) == (struct.unpack_from("!H", query)[0], 1, 1)
    assert reply[12 : len(query)] == query[12:]
    return reply[len(query) + 12 :] if answers else flags & 15


def ask(*queries):
    """Return what each query finds, by UDP; the name of the error without a server."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.settimeout(10)
        try:
            one.connect(SERVER)
            found = []
            for query in queries:
                one.send(query)
                found.append(found_in(one.recv(1 << 12), query))
        except OSError as error:
            return type(error).__name__
        return found


def ask_by_tcp(*queries):
    """The same by TCP, with all queries sent at once, in pieces."""
    with socket.create_connection(SERVER, timeout=10) as one, one.makefile("rb") as answers:
        data = b"".join(struct.pack("!H", len(query)) + query for query in queries)
        one.sendall(data[:5])
        time.sleep(0.01)
        one.sendall(data[5:])
        replies = [answers.read(struct.unpack("!H", answers.read(2))[0]) for _ in queries]
        return [found_in(*pair) for pair in zip(replies, queries, strict=True)]


def looked_up(name):
    try:
        return socket.gethostbyname(name)
    except socket.gaierror:
        return None


def reverse(address):
    return ".".join(reversed(address.split("."))) + ".in-addr.arpa"


def server_pid(net):
    """Return the PID of the name server: the peer of its socket cannot tell, so it is the child of
    the launcher that ends with the socket.
    """
    launcher = net._launcher.process.pid
    with open(f"/proc/{launcher}/task/{launcher}/children", encoding="ascii") as file:
        children = [int(pid) for pid in file.read().split()]
    found = [pid for pid in children if sockets_at_53(pid)]
    assert 1 == len(found)
    return found[0]


def sockets_at_53(pid):
    """Return the sockets of a process, if it has several in other network namespaces."""
    links = []
    with contextlib.suppress(OSError):
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    has_epoll = any("eventpoll" in link for link in links)
    return [link for link in links if link.startswith("socket:")][2:] if has_epoll else []


@pytest.fixture
def net():
    with Network() as made:
        yield made


@pytest.fixture
def pair(net):
    with Container(network=net, hostname="db") as db, Container(network=net, hostname="Web") as web:
        yield db, web


@pytest.mark.vm
@pytest.mark.parametrize("call", [ask, ask_by_tcp])
def test_names_and_addresses(pair, call):
    """Host names and ids in any case, and addresses; other names do not exist."""
    db, web = pair
    queries = {
        question("db"): socket.inet_aton(db.ip_address),
        question("wEB"): socket.inet_aton(web.ip_address),
        question(db.id): socket.inet_aton(db.ip_address),
        question("localhost"): socket.inet_aton("127.0.0.1"),
        question("db", AAAA): 0,
        question(reverse(web.ip_address), PTR): dns.encode_name("Web"),
        question(reverse("172.30.0.9"), PTR): NO_NAME,
        question(reverse("172.30.0.9")): NO_NAME,
        question("example.org"): NO_NAME,
        question("db.example.org"): NO_NAME,
    }
    for one in pair:
        assert [*queries.values()] == one.call(call, *queries)


def test_resolv_conf_names_it(pair, busybox_root, net):
    """The C library asks it: without the hosts file, names are found all the same."""
    assert "nameserver 127.0.0.11" in pair[0].read_text("/etc/resolv.conf")
    with Container(image=busybox_root, network=net) as one:
        done = one.run(["nslookup", "db"], capture_output=True, text=True)
        assert pair[0].ip_address in done.stdout, done


@pytest.mark.slow
def test_each_of_100_finds_every_other(net):
    """100 containers, each of which queries all 100 names."""
    with contextlib.ExitStack() as stack:
        every = [
            stack.enter_context(Container(network=net, hostname=f"c{number}"))
            for number in range(100)
        ]
        queries = [question(f"c{number}") for number in range(100)]
        expected = [socket.inet_aton(one.ip_address) for one in every]
        assert 100 == len(set(expected))
        for one in every:
            assert expected == one.call(ask, *queries)
    with Container(network=net) as one:
        assert [NO_NAME] * 100 == one.call(ask, *queries)


def test_a_container_that_is_connected_later(pair, net):
    """It finds the others by name, and they find it; no more once it is disconnected."""
    with Container(hostname="late") as late:
        assert "ConnectionRefusedError" == late.call(ask, question("db"))
        for _ in range(2):
            net.connect(late)
            assert pair[0].ip_address == late.call(looked_up, "db")
            assert [socket.inet_aton(late.ip_address)] == pair[1].call(ask, question("late"))
            net.disconnect(late)
            assert "ConnectionRefusedError" == late.call(ask, question("db"))
            assert [NO_NAME] == pair[1].call(ask, question("late"))


def test_after_a_commit(pair):
    """A new init has the name server, too."""
    db, web = pair
    db.commit()
    expected = [socket.inet_aton(db.ip_address), socket.inet_aton(web.ip_address)]
    for one in pair:
        assert expected == one.call(ask, question("db"), question("web"))


def test_networks_have_separate_names(pair):
    """The names of another network do not exist."""
    with Network() as other, Container(network=other, hostname="else") as one:
        assert [NO_NAME] == one.call(ask, question("db"))
        assert [NO_NAME] == pair[0].call(ask, question("else"))


def listen_everywhere():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("", 53))
        with socket.create_server(("", 53)):
            return ask(question("db")), ask_by_tcp(question("db"))


def test_a_server_inside_may_have_port_53(pair):
    """A program inside listens on port 53 of all addresses, and the name server answers still."""
    expected = [socket.inet_aton(pair[0].ip_address)]
    for one in pair:
        assert (expected, expected) == tuple(one.call(listen_everywhere))


@pytest.mark.needs("dig")
def test_dig(pair):
    """dig(1) finds names, aliases and addresses, by UDP and TCP, from each source address."""
    db, web = pair

    def dig(*arguments):
        argv = ["dig", "+time=5", "+tries=1", "+short", *arguments]
        return web.run(argv, capture_output=True, text=True, check=True).stdout.split()

    for more in ([], ["+tcp"], ["-b", web.ip_address], ["-b", web.ip_address, "+tcp"]):
        assert [db.ip_address] == dig("db", *more)
    assert ["db."] == dig("-x", db.ip_address)
    assert [] == dig("db", "AAAA")
    assert [] == dig("version.bind", "chaos", "txt")


NGINX = """
worker_processes 1;
error_log /dev/stderr;
pid /tmp/nginx.pid;
events {}
http {
    access_log off;
    client_body_temp_path /tmp/body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    server {
        listen 8080;
        resolver 127.0.0.11;
        location / { set $upstream primary; proxy_pass http://$upstream:80; }
    }
}
"""
BACKEND = """
import http.server, io
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"42")
http.server.HTTPServer(("", 80), Handler).serve_forever()
"""


def fetch():
    with urllib.request.urlopen("http://127.0.0.1:8080/", timeout=20) as answer:
        return answer.read()


@pytest.mark.needs("nginx")
def test_nginx_with_a_resolver(net):
    """nginx(8), which reads no hosts file, finds its upstream by an alias."""
    with Container(network=net, hostname=["db", "primary"]) as db, Container(network=net) as web:
        web.write_text("/tmp/nginx.conf", NGINX)
        db.popen([sys.executable, "-c", BACKEND])
        db.wait_for(port=80)
        web.popen(["nginx", "-c", "/tmp/nginx.conf", "-g", "daemon off;"])
        web.wait_for(port=8080)
        assert b"42" == web.call(fetch)


def test_aliases(pair, net):
    """Aliases of ``hostname=[...]`` and of ``connect`` are names in DNS and in the hosts file; the
    address leads back to the host name.
    """
    _db, web = pair
    aliases = [f"alias-{number}-{'x' * 50}" for number in range(3)]
    with Container(network=net, hostname=["main", "Primary", *aliases]) as one:
        assert "main" == one.hostname == one.run(["hostname"], stdout=-1, text=True).stdout.strip()
        assert ("main", one.ip_address) == (list(net.addresses)[-1], net.addresses["main"])
        names = ["main", "primary", *aliases, one.id]
        found = [socket.inet_aton(one.ip_address)] * len(names)
        assert found == web.call(ask, *map(question, names))
        assert [one.ip_address] * len(names) == [web.call(hosts_entry, name) for name in names]
        back = dns.encode_name("main")
        assert [back] == web.call(ask, question(reverse(one.ip_address), PTR))
        net.disconnect(one)
        assert [NO_NAME] * len(names) == web.call(ask, *map(question, names))
        assert {None} == {web.call(hosts_entry, name) for name in names}
        net.connect(one, aliases=["later", "too"])
        names = ["main", "later", "too"]
        assert found[:3] != web.call(ask, *map(question, names)) != [NO_NAME] * 3
        assert web.call(ask, question("later")) == [socket.inet_aton(one.ip_address)]


def hosts_entry(name):
    with open("/etc/hosts", encoding="ascii") as file:
        found = [line.split()[0] for line in file if name.lower() in line.lower().split()[1:]]
    return found[0] if found else None


@pytest.mark.parametrize("used", ["DB", "localhost", "web"])
def test_a_used_alias_is_refused(pair, net, used):
    """Names are unique on a network, in any case, and nothing is left of the container."""
    with pytest.raises(SettingsError, match="a name that is not used on the network"):
        Container(network=net, hostname=["new", used]).start()
    with Container() as late:
        with pytest.raises(SettingsError, match="a name that is not used on the network"):
            net.connect(late, aliases=[used])
        assert {"db", "Web"} == set(net.addresses)
        net.connect(late)


@pytest.mark.parametrize("aliases", [["a b"], [""], ["-"], [7], ["x" * 64]])
def test_an_invalid_alias_is_refused(net, aliases):
    """The error has the value and the form."""
    with Container() as one, pytest.raises(SettingsError, match=r"aliases.*RFC 1123"):
        net.connect(one, aliases=aliases)


ORDINARY = """
import json, os, socket, test_name_server as t
from pytest_sandbox import Container, Network
with Network() as net, Container(network=net, hostname=["db", "primary"]) as db:
    with Container() as late:
        net.connect(late, aliases=["later"])
        queries = [t.question(name) for name in ("db", "primary", "later", "none")]
        found = late.call(t.ask, *queries), db.call(t.ask_by_tcp, *queries)
        net.disconnect(late)
        found = [[one if isinstance(one, int) else one.hex() for one in half] for half in found]
        print(json.dumps([os.getuid(), found, late.call(t.ask, queries[0])]))
"""


@pytest.mark.needs("root", "unshare")
def test_an_ordinary_user(tmp_path):
    """It needs no privilege: the user of a user namespace without capabilities gets the same."""
    argv = ["unshare", "--user", "--map-user=1234", "--map-group=1234"]
    path = f"{os.path.dirname(os.path.dirname(__file__))}:{os.path.dirname(__file__)}"
    env = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": path, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [*argv, sys.executable, "-c", ORDINARY],
        capture_output=True,
        text=True,
        env=env,
        timeout=60,
        check=False,
    )
    assert not done.returncode, done.stderr
    db, late = (socket.inet_aton(f"172.30.0.{number}").hex() for number in (2, 3))
    expected = [db, db, late, NO_NAME]
    assert [1234, [expected, expected], "ConnectionRefusedError"] == json.loads(done.stdout)


# -- attacks


def send_garbage():
    chance = random.Random(3)
    valid = question("db")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        for _ in range(3000):
            message = bytearray(valid)
            for _ in range(chance.randrange(1, 5)):
                message[chance.randrange(len(message))] = chance.randrange(256)
            one.sendto(bytes(message[: chance.randrange(len(message) + 1)]), SERVER)
        one.sendto(b"", SERVER)
        one.sendto(bytes(60_000), SERVER)
    for data in (b"\0\0", b"\0\x05hello", b"\xff\xff" + bytes(70_000), b"\0"):
        with socket.create_connection(SERVER, timeout=10) as one, contextlib.suppress(OSError):
            one.sendall(data)
            one.shutdown(socket.SHUT_WR)
            assert b"" == one.recv(100)


def test_malformed_messages(pair):
    """They get no answer, and the server goes on."""
    pair[0].call(send_garbage)
    for one in pair:
        assert [socket.inet_aton(pair[0].ip_address)] == one.call(ask, question("db"))


def send_raw_packets():
    """Send packets of random headers and data to the name server, from its own loopback."""
    chance = random.Random(5)
    query = question("db")
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as one:
        for _ in range(3000):
            protocol = chance.choice([6, 17])
            words = chance.choice([5, 5, 6, 15])
            source = chance.choice(["127.0.0.1", "127.0.0.11", "10.0.0.1", "255.255.255.255"])
            body = bytearray(struct.pack("!4H", chance.randrange(1 << 16), 53, 8, 0) + query)
            for _ in range(chance.randrange(6)):
                body[chance.randrange(len(body))] = chance.randrange(256)
            body = bytes((words - 5) * 4) + bytes(body[: chance.randrange(len(body) + 1)])
            fragment = chance.choice([0, 0, 0, 0x2000, 7])
            header = struct.pack(
                "!BBHHHBBH", 0x40 | words, 0, 20 + len(body), 0, fragment, 64, protocol, 0
            )
            packet = header + socket.inet_aton(source) + socket.inet_aton(SERVER[0]) + body
            with contextlib.suppress(OSError):  # the kernel refuses some
                one.sendto(packet, (SERVER[0], 0))


@pytest.mark.needs("root")
def test_malformed_packets(net):
    """Packets of a program with CAP_NET_RAW harm neither its server nor other containers."""
    with (
        Container(network=net, hostname="db", cap_add=["NET_RAW"]) as db,
        Container(network=net) as web,
    ):
        assert web.call(is_answered)
        pid = server_pid(net)
        db.call(send_raw_packets)
        expected = [socket.inet_aton(db.ip_address)]
        for one in (db, web):
            assert expected == one.call(ask, question("db"))
            assert expected == one.call(ask_by_tcp, question("db"))
        assert pid == server_pid(net)


def test_parse_takes_anything():
    """No message makes the parser fail."""
    chance = random.Random(7)
    valid = question("db.example.org")
    for _ in range(20_000):
        message = bytearray(valid if chance.random() < 0.8 else chance.randbytes(60))
        for _ in range(chance.randrange(5)):
            message[chance.randrange(len(message))] = chance.randrange(256)
        query = dns.parse(bytes(message[: chance.randrange(len(message) + 1)]))
        if query is not None:
            assert dns.answer(query, NO_NAME)[:2] == bytes(query.message[:2])
            dns.reverse_address(query.name)


def flood(seconds):
    """Send queries as fast as possible, without reading the answers."""
    end = time.monotonic() + seconds
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(SERVER)
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                one.send(question("db"))


def test_a_flood_does_not_block_others(pair):
    """While a container sends queries without an end, another one gets its answers."""
    db, web = pair
    thread = threading.Thread(target=db.call, args=(flood, 2))
    thread.start()
    for _ in range(20):
        assert [socket.inet_aton(db.ip_address)] == web.call(ask, question("db"))
    thread.join()


def hold_connections():
    held = [socket.create_connection(SERVER, timeout=10) for _ in range(200)]
    try:
        query = question("db")
        flood = (struct.pack("!H", len(query)) + query) * 1000
        with contextlib.suppress(OSError):  # answers are not read: the server ends it
            held[-1].settimeout(2)
            for _ in range(300):
                held[-1].sendall(flood)
        return ask_by_tcp(query)
    finally:
        for one in held:
            one.close()


def test_connections_that_are_held(pair):
    """A program that keeps connections, or does not read, stops nobody."""
    assert [socket.inet_aton(pair[0].ip_address)] == pair[0].call(hold_connections)
    assert [socket.inet_aton(pair[0].ip_address)] == pair[1].call(ask, question("db"))


# -- its end


def is_answered():
    """Return whether a query is answered within a quarter of a second."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.settimeout(0.25)
        one.connect(SERVER)
        one.send(question("db"))
        try:
            return bool(one.recv(1 << 12))
        except TimeoutError:
            return False


def test_without_its_process_the_hosts_file_resolves(pair, net):
    """After SIGKILL, names are in the hosts file; with the next container a server starts again."""
    db, web = pair
    assert web.call(is_answered)
    pid = server_pid(net)
    pidfd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        assert process.ended(pidfd, 10)
    finally:
        os.close(pidfd)
    assert not web.call(is_answered)
    assert db.ip_address == web.call(looked_up, "db")
    with Container(network=net, hostname="third") as third:
        for one in (db, web, third):
            assert [socket.inet_aton(db.ip_address), socket.inet_aton(third.ip_address)] == (
                one.call(ask, question("db"), question("third"))
            )
    assert [NO_NAME] == web.call(ask, question("third"))


def test_its_process_ends_with_the_network():
    """Closing the network ends it."""
    with Network() as net, Container(network=net) as one:
        assert one.call(is_answered)
        pidfd = os.pidfd_open(server_pid(net))
    assert process.ended(pidfd, 10)
    os.close(pidfd)


VICTIM = """
import socket
from pytest_sandbox import Container, Network

def ask():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.settimeout(10)
        one.connect(("127.0.0.11", 53))
        one.send(bytes.fromhex("000701000001000000000000026462000001" "0001"))
        return one.recv(100)

while True:
    with Network() as net, Container(network=net, hostname="db") as db:
        print(net._launcher.process.pid, flush=True)
        for _ in range(3):
            with Container(network=net) as other:
                assert other.call(ask)
"""


def test_nothing_is_left_after_sigkill_of_the_client():
    """At random moments: all processes of the launcher end, and nothing of the session is left."""
    chance = random.Random(11)
    for _ in range(4):
        code = [sys.executable, "-c", VICTIM]
        with subprocess.Popen(code, stdout=subprocess.PIPE, text=True) as victim:
            launcher = int(victim.stdout.readline())
            with contextlib.suppress(subprocess.TimeoutExpired):
                victim.wait(chance.uniform(0, 0.15))
            pidfds = [os.pidfd_open(launcher), *children_of(launcher)]
            victim.kill()
        for pidfd in pidfds:
            assert process.ended(pidfd, 10)
            os.close(pidfd)
        assert [] == leftovers.of(victim.pid)


def children_of(pid):
    """Return pidfds of the children of a process that have not ended meanwhile."""
    found = []
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        for child in file.read().split():
            with contextlib.suppress(ProcessLookupError):
                found.append(os.pidfd_open(int(child)))
    return found
