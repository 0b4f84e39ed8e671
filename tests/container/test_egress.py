"""Outgoing connections by name: ``network=["pypi.org:443"]`` and ``network="outside"``."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from pytest_sandbox import Container, SettingsError
from tests import egress_world

pytestmark = pytest.mark.needs("containers", "root", "unshare", "ip", "nsenter")

#: Runs inside: connects to each NAME:PORT of its arguments, and prints how that went as JSON.
CLIENT = """
import json, socket, sys

def ask(target):
    host, port = target.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(b"hello")
            return connection.recv(100).decode() or "closed"
    except OSError as error:
        return type(error).__name__

print(json.dumps([ask(target) for target in sys.argv[1:]]))
"""
PROGRAM = f"""
import json
CLIENT = {CLIENT!r}
def ask(container, *targets, **options):
    done = container.run([sys.executable, "-SEc", CLIENT, *targets], capture_output=True,
                         text=True, timeout=50, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
"""


def on_host(program, **options):
    """Run a program on the host of egress_world.py; return what it prints, as JSON."""
    return json.loads(egress_world.run(PROGRAM + program, **options))


def test_only_what_is_listed_is_connected_to():
    """Names, names with a wildcard and addresses, each with its ports; nothing else."""
    assert (
        on_host("""
with Container(network=["pypi.test:443", "*.example.test:443", "203.0.113.5:5432"]) as c:
    print(json.dumps(ask(c, "pypi.test:443", "PyPI.Test:443", "files.example.test:443",
        "203.0.113.5:5432", "pypi.test:5432", "other.test:443", "203.0.113.5:443",
        "example.test:443", "203.0.113.1:22")))
""")
        == ["hello"] * 4 + ["ConnectionRefusedError"] * 5
    )


def test_outside_reaches_what_the_host_reaches():
    """Any name, address and port; not the host's addresses by name."""
    assert (
        on_host("""
with Container(network="outside") as c:
    print(json.dumps(ask(c, "pypi.test:443", "other.test:5432", "203.0.113.5:443",
        "own.test:443", "loop.test:443", "metadata.test:443", "203.0.113.5:9")))
""")
        == ["hello"] * 3 + ["ConnectionResetError"] * 4
    )


def test_a_name_leads_to_the_host_only_where_its_address_is_listed():
    """A service of the host's loopback is refused by name, unless the address is allowed."""
    assert on_host("""
service = socket.create_server(("127.0.0.1", 7000))
def serve():
    while True:
        connection = service.accept()[0]
        connection.sendall(connection.recv(100))
        connection.close()
threading.Thread(target=serve, daemon=True).start()
found = []
for network in (["loop.test:7000"], ["loop.test:7000", "127.0.0.1:7000"]):
    with Container(network=network) as c:
        found += ask(c, "loop.test:7000")
print(json.dumps(found))
""") == ["ConnectionResetError", "hello"]


def test_what_was_not_connected_is_known():
    """Host, port, protocol, program, reason and count; a name that was only looked up, too."""
    found = on_host("""
with Container(network=["pypi.test:443", "loop.test:80"]) as c:
    ask(c, "pypi.test:443", "evil.test:8443", "evil.test:8443", "203.0.113.5:22", "loop.test:80")
    c.run([sys.executable, "-SEc", "import socket; socket.gethostbyname('asked.test');"
        "s = socket.socket(type=socket.SOCK_DGRAM); s.sendto(b'x', ('time.test', 123))"])
    print(json.dumps(attempts(c)))
""")
    program = Path(sys.executable).name[:15]
    key = {(one["host"], one["port"], one["protocol"]): one for one in found}
    assert set(key) == {
        ("evil.test", 8443, "tcp"),
        ("203.0.113.5", 22, "tcp"),
        ("loop.test", 80, "tcp"),
        ("time.test", 123, "udp"),
        ("asked.test", None, "dns"),
    }
    evil = key["evil.test", 8443, "tcp"]
    assert (evil["count"], evil["program"], evil["reason"]) == (2, program, "not allowed")
    assert "of this host" in key["loop.test", 80, "tcp"]["reason"]
    assert "UDP" in key["time.test", 123, "udp"]["reason"]


def test_names_that_do_not_resolve_are_errors_of_the_name():
    """A name that no server knows is no connection; the reason is reported."""
    asked, found = on_host("""
with Container(network=["gone.test:443"]) as c:
    print(json.dumps([ask(c, "gone.test:443"), attempts(c)]))
""")
    assert asked == ["gaierror"]
    assert [(one["host"], one["reason"]) for one in found] == [
        ("gone.test", "no name server of the host answers")
    ]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("gone.test", r"gone\.test \(no name server of the host answers: correct the name servers"),
        ("evil.test", r"evil\.test:443 \(not allowed: add it to network=\)"),
        ("loop.test", r"loop\.test:443 \(.* address of this host: list its address in network="),
    ],
)
def test_a_service_that_does_not_reach_what_it_needs(target, said):
    """The error that it is not ready has the setting, the name, the reason and what to do; nothing
    is left.
    """
    error, left = on_host(f"""
from pytest_sandbox.container.lifecycle import local_handles
from pytest_sandbox.services import Port, Service, ServiceError
script = "import socket; socket.create_connection(('{target}', 443)).recv(1)"
network = ["gone.test:443", "loop.test:443"]
service = Service([sys.executable, "-c", script], ready=Port(80), network=network, timeout=60)
try:
    service.start()
except ServiceError as error:
    print(json.dumps([str(error), len(local_handles())]))
""")
    assert 0 == left
    assert re.search(rf"not ready: it ended with exit status 1; .*network=\[.*\].*{said}", error)


def test_a_proxy_of_the_environment_is_used():
    """Names go through HTTPS_PROXY with CONNECT, except those of NO_PROXY; inside, programs see no
    proxy. The host need not resolve the names.
    """
    found = on_host("""
os.environ["HTTPS_PROXY"] = "http://user:p%40ss@203.0.113.5:3128"
os.environ["NO_PROXY"] = "localhost,.example.test"
os.environ["http_proxy"] = "http://203.0.113.5:3128"
network = ["unknown.test:443", "files.example.test:443", "refused.test:443", "203.0.113.5:5432"]
with Container(network=network) as c:
    answers = ask(c, *network)
    inside = c.run(["env"], capture_output=True, text=True).stdout.split("\\n")
    body = c.call(lambda: [os.environ["HTTPS_PROXY"], os.environ["http_proxy"]])
    print(json.dumps([answers, [one for one in inside if "203" in one], body, attempts(c),
        open("/mnt/proxy-requests").read().splitlines()]))
""")
    answers, inside, body, attempts, requests = found
    assert answers == ["hello", "hello", "ConnectionResetError", "hello"]
    assert (inside, body) == ([], ["", ""])
    assert [one["host"] for one in attempts] == ["refused.test"]
    assert "403" in attempts[0]["reason"]
    assert [request.split("|")[0] for request in requests] == [
        "CONNECT unknown.test:443 HTTP/1.1",
        "CONNECT refused.test:443 HTTP/1.1",
    ]
    assert "Proxy-Authorization: Basic dXNlcjpwQHNz" in requests[0]


def test_much_data_and_a_half_closed_connection():
    """Bytes pass unchanged, in both directions, also after one side has ended its own."""
    assert (
        on_host("""
CODE = '''
import hashlib, socket, threading, os
data = os.urandom(1 << 20) * 50
one = socket.create_connection(("pypi.test", 443))
def send():
    one.sendall(data)
    one.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
digest = hashlib.sha256()
while got := one.recv(1 << 20):
    digest.update(got)
print(int(digest.digest() == hashlib.sha256(data).digest()))
'''
with Container(network=["pypi.test:443"]) as c:
    print(c.run([sys.executable, "-SEc", CODE], capture_output=True, text=True).stdout)
""")
        == 1
    )


def test_its_name_server_by_udp_and_tcp():
    """Names and addresses are found at 127.0.0.11 by both; a name that no server of the host can
    be asked for is a server failure.
    """
    found = on_host("""
def query(name, kind):
    labels = b"".join(bytes([len(one)]) + one.encode() for one in name.split("."))
    head = b"\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0"
    return head + labels + b"\\0\\0" + bytes([kind]) + b"\\0\\1"

def asked():
    answers = []
    for name, kind in (("pypi.test", 1), ("pypi.test", 28), ("gone.test", 1),
                       ("16.0.18.198.in-addr.arpa", 12), ("1.0.18.198.in-addr.arpa", 12)):
        data = query(name, kind)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.settimeout(20)
            one.connect(("127.0.0.11", 53))
            one.send(data)
            by_udp = one.recv(4096)
        with socket.create_connection(("127.0.0.11", 53), timeout=20) as one:
            one.sendall(len(data).to_bytes(2, "big") + data)
            by_tcp = one.recv(4096)[2:]
        assert by_udp == by_tcp
        answers.append([by_udp[3] & 15, by_udp[7], by_udp[len(data) + 12:].hex()])
    return answers

with Container(network=["pypi.test:443", "gone.test:443"]) as c:
    c.commit()
    print(json.dumps([c.call(asked), attempts(c)]))
""")
    answers, attempts = found
    assert answers == [
        [0, 1, "c6120010"],
        [0, 0, ""],
        [2, 0, ""],
        [0, 1, b"\x04pypi\x04test\0".hex()],
        [3, 0, ""],
    ]
    assert [(one["host"], one["reason"]) for one in attempts] == [
        ("gone.test", "no name server of the host answers")
    ]


def test_a_new_init_after_a_commit_and_published_ports():
    """A commit keeps what is allowed; ports may be published at the same time."""
    assert on_host("""
SERVER = "import socket; socket.create_server(('', 80)).accept()[0].sendall(b'42')"
with Container(network=["pypi.test:443"], publish=["80"]) as c:
    found = ask(c, "pypi.test:443", "pypi.test:80")
    c.commit()
    found += ask(c, "pypi.test:443", "pypi.test:80")
    c.popen([sys.executable, "-SEc", SERVER])
    c.wait_for(port=80, timeout=30)
    with socket.create_connection((c.host_address, c.ports[80])) as one:
        found.append(one.recv(10).decode())
    print(json.dumps(found))
""") == ["hello", "ConnectionRefusedError"] * 2 + ["42"]


def test_an_ordinary_user():
    """It takes no right over the host's network."""
    program = """
import json, sys, os
from pytest_sandbox import *
with Container(network=["pypi.test:443"]) as c:
    done = c.run([sys.executable, "-SEc", CLIENT, "pypi.test:443", "evil.test:1"],
        capture_output=True, text=True)
    print(json.dumps([json.loads(done.stdout), c.handle.egress.attempts(), os.getuid()]))
"""
    found = on_host(f"print(as_user({f'CLIENT = {CLIENT!r}{program}'!r}))")
    answers, attempts, user = found
    assert (answers, user) == (["hello", "ConnectionRefusedError"], 1234)
    assert [(one["host"], one["port"]) for one in attempts] == [("evil.test", 1)]
    assert attempts[0]["program"] == Path(sys.executable).name[:15]


@pytest.mark.parametrize("victim", ["client", "forwarder"])
def test_nothing_is_left_after_sigkill(victim):
    """The forwarder ends with its client, and a program inside gets an error if it is killed."""
    assert (
        on_host(
            f"""
victim = {victim!r}
CODE = '''
import os, signal, sys, json
from pytest_sandbox import *
with Container(network=["pypi.test:443"]) as c:
    c.run(["true"])
    print(c.id, flush=True)
    sys.stdin.read()
'''
"""
            """
import pathlib, signal, time
def children(pid):
    return [int(one) for one in
        pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
client = subprocess.Popen([sys.executable, "-c", CODE], stdin=-1, stdout=-1, text=True)
client.stdout.readline()
(launcher,) = children(client.pid)
def namespaces(pid):
    links = (os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
    return [link for link in links if link.startswith("net:[")]
forwarders = [pid for pid in children(launcher) if len(namespaces(pid)) == 2]
assert len(forwarders) == 1, (forwarders, children(launcher))
all_pids = [launcher, *children(launcher)]
os.kill(client.pid if victim == "client" else forwarders[0], signal.SIGKILL)
if victim == "forwarder":
    client.stdin.close()
client.wait(30)
deadline = time.monotonic() + 20
while any(os.path.exists(f"/proc/{pid}") for pid in all_pids) and time.monotonic() < deadline:
    time.sleep(0.05)
print(json.dumps([pid for pid in all_pids if os.path.exists(f"/proc/{pid}")]))
"""
        )
        == []
    )


@pytest.mark.needs("containers")
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["pypi.org"], 'did you mean "pypi.org:443"?'),
        ("pypi.org", 'did you mean "pypi.org:443"?'),
        (["https://pypi.org:443"], "without a scheme"),
        (["pypi.org:0"], "a port from 1 to 65535"),
        (["pypi.org:https"], "a port from 1 to 65535"),
        (["*.*.org:443"], "a host name"),
        (["10.0.0.300:443"], "IPv4 address"),
        (["[::1]:443"], "IPv4 addresses"),
        ([], 'network="none"'),
        (443, '"outside"'),
        (["pypi.org:443", None], '"outside"'),
        ("bridges", '"outside"'),
    ],
)
def test_invalid_destinations(value, message):
    """The error names the key, the value and what is accepted."""
    with pytest.raises(SettingsError, match="network") as caught:
        Container(network=value)
    assert message in str(caught.value)


def test_an_invalid_proxy(monkeypatch):
    """It is an error at the start, which names the variable."""
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1")
    with (
        pytest.raises(SettingsError, match=r"https_proxy.*http://\[USER"),
        Container(network=["pypi.test:443"]),
    ):
        pass


def test_forms_of_the_value():
    """A list, and a text with commas, have one canonical form."""
    expected = "pypi.org:443,*.example.org:443,10.0.0.5:5432"
    items = ["PyPI.org.:443", "*.example.org:443", "10.0.0.5:5432", "pypi.org:443"]
    assert Container(network=items).settings.network == expected
    assert Container(network=expected).settings.network == expected


def test_the_command_line():
    """``--network bridge`` is docker's word for everything that the host reaches."""
    found = egress_world.run("""
done = subprocess.run([sys.executable, "-m", "pytest_sandbox", "run", "--network", "bridge", "host",
    "getent", "hosts", "pypi.test"], capture_output=True, text=True)
print(done.stdout, done.stderr)
""")
    assert found.startswith("198.18.0.16")
