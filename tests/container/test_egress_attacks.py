"""Programs inside that try to reach more than ``network=`` allows, or to stop the forwarder."""

from __future__ import annotations

import json

import pytest

from tests import egress_world

pytestmark = pytest.mark.needs("containers", "root", "unshare", "ip", "nsenter")

PROGRAM = r"""
import json, time
def run(container, code, **options):
    done = container.run([sys.executable, "-SEc", code], capture_output=True, text=True,
                         timeout=50, **options)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout or "null")
CLIENT = '''
import json, socket
try:
    with socket.create_connection(("pypi.test", 443), 20) as one:
        one.sendall(b"hello")
        print(json.dumps(one.recv(100).decode()))
except OSError as error:
    print(json.dumps(type(error).__name__))
'''
"""


def on_host(program):
    """Run a program on the host of egress_world.py; return what it prints, as JSON."""
    return json.loads(egress_world.run(PROGRAM + program))


#: On the host: a service of its loopback, and a proxy there, whose header comes in two parts.
PROXY = r"""
service = socket.create_server(("127.0.0.1", 7000))
proxy = socket.create_server(("127.0.0.1", 3128))
asked = []

def serve():
    while True:
        connection = service.accept()[0]
        connection.sendall(connection.recv(100))
        connection.close()

def await_reader(connection):
    # Until the queue of the other end is empty: its line of /proc/net/tcp (proc_net_tcp(5)).
    ends = f":{connection.getpeername()[1]:04X} 0100007F:{connection.getsockname()[1]:04X} 01 "
    while not any(ends in line and ":00000000 " in line for line in open("/proc/net/tcp")):
        time.sleep(0.01)

def answer(connection):
    request = b""
    while b"\r\n\r\n" not in request:
        request += connection.recv(1000)
    asked.append(request.split()[1].decode())
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(b"HTTP/1.1 200 ok\r\n")
    await_reader(connection)
    connection.sendall(b"\r\n")
    with socket.create_connection(("127.0.0.1", 7000)) as other:
        other.sendall(connection.recv(100))
        connection.sendall(other.recv(100))
    connection.close()

def relay():
    while True:
        threading.Thread(target=answer, args=(proxy.accept()[0],), daemon=True).start()

for target in (serve, relay):
    threading.Thread(target=target, daemon=True).start()
os.environ["HTTPS_PROXY"] = "http://127.0.0.1:3128"
"""
#: Inside: connects to names that it sends to the name server in any form.
NAMES = r"""
import json, socket, struct

def look_up(name):
    labels = b"".join(bytes([len(one)]) + one for one in name)
    query = struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + labels + bytes([0, 0, 1, 0, 1])
    with socket.socket(type=socket.SOCK_DGRAM) as one:
        one.settimeout(20)
        one.sendto(query, ("127.0.0.11", 53))
        answer = one.recv(1000)
        return socket.inet_ntoa(answer[-4:]) if answer[7] else None

def ask(name):
    address = look_up(name)
    if address is None:
        return "no name"
    try:
        with socket.create_connection((address, 7000), 20) as one:
            one.sendall(b"hello")
            return one.recv(100).decode()
    except OSError as error:
        return type(error).__name__

names = ([b"localhost"], [b"127", b"0", b"0", b"1"], [b"127.0.0.1"], [b"2130706433"],
    [b"0x7f000001"], [b"localhost."], [b"x", b"localhost"], [b"other", b"test"])
print(json.dumps([ask(name) for name in names]))
"""


def test_no_name_leads_to_the_host_through_a_proxy_on_it():
    """A name that means the host is not passed to a proxy, which may run there. The end of the
    proxy's header may come in two parts.
    """
    answers, asked = on_host(f"""
{PROXY}
with Container(network="outside") as c:
    print(json.dumps([run(c, {NAMES!r}), asked]))
""")
    assert answers[-1] == "hello"
    assert set(answers[:-1]) <= {"ConnectionResetError", "no name"}
    assert asked == ["other.test:7000"]


#: Inside: sends packets of any form to the gateway, and queries to its name server.
MALFORMED = r"""
import os, random, socket, struct
source = random.Random(7)
packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
packets.bind(("eth0", 0))
queries = socket.socket(type=socket.SOCK_DGRAM)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for number in range(4000):
    size, length = source.choice([5, 5, 5, *range(16)]), source.choice([40, 0, 19, 65535])
    version, fragment = source.choice([4, 4, 4, 6, 0]), source.choice([0, 0, 0x2000, 0x1FFF])
    protocol, flags = source.choice([6, 6, 17, 1]), source.choice([2, 2, 0x12, 0xFF])
    target = source.choice([bytes([198, 18, 0, 16]), bytes([127, 0, 0, 1]), source.randbytes(4)])
    ip = struct.pack("!BBHHHBBH", version << 4 | size, 0, length, 7, fragment, 64, protocol, 0)
    tcp = struct.pack("!HHIIBBHHH", 1000, 443, 1, 0, source.choice([80, 0, 240]), flags, 9, 0, 0)
    data = ip + source.randbytes(4) + target + tcp + source.randbytes(source.choice([0, 1, 60]))
    head = bytes([2, 66, 198, 18, 0, 1]) * 2 + source.choice([b"\x08\x00"] * 3 + [b"\x86\xdd"])
    packets.send(head + data[: source.choice([1, 8, 19, 20, 27, 28, 33, 9999, 9999, 9999])])
    if number % 20 == 0:
        long = (b"\x3f" + b"a" * 63) * 60
        names = (source.randbytes(300), b"\xc0\x0c", b"\x3f" + bytes(10), long, b"\x02\r\n")
        flags, count = source.choice([0x100, 0x8000]), source.choice([0, 1, 9])
        query = struct.pack("!6H", 7, flags, count, 0, 0, 0) + source.choice(names)
        queries.sendto(query + bytes([0, 0, 1, 0, 1]), ("127.0.0.11", 53))
    if number % 4 == 0:  # of any form to the name server, which reads packets
        own, server = bytes([127, 0, 0, 1]), bytes([127, 0, 0, 11])
        start = struct.pack("!BBHHHBBH", 64 | max(5, size), 0, 0, 7, 0, 64, protocol, 0)
        ends = struct.pack("!HH", 1000, 53)
        rest = ends + source.choice([tcp[4:], source.randbytes(60), b"", tcp[4:9]])
        options = bytes(max(0, size - 5) * 4)
        try:
            raw.sendto(start + own + server + options + rest, ("127.0.0.11", 0))
        except OSError:  # the kernel refuses it
            pass
"""


@pytest.mark.parametrize("network", [["pypi.test:443"], "outside"])
def test_malformed_packets_and_queries(network):
    """The forwarder goes on, and counts a bounded number of attempts."""
    answer, count = on_host(f"""
with Container(network={network!r}, cap_add=["NET_RAW"]) as c:
    run(c, {MALFORMED!r})
    print(json.dumps([run(c, CLIENT), len(attempts(c))]))
""")
    assert answer == "hello"
    assert 0 < count <= 2000


def test_a_device_that_is_removed_inside():
    """What was blocked before is known, and there is no connection any more."""
    answer, ports, later = on_host("""
with Container(network=["other.test:443"], cap_add=["NET_ADMIN"]) as c:
    answer = run(c, CLIENT)
    c.run(["ip", "link", "del", "eth0"], check=True)
    print(json.dumps([answer, [one["port"] for one in attempts(c)], run(c, CLIENT)]))
""")
    assert (answer, ports) == ("ConnectionRefusedError", [443])
    assert later in {"gaierror", "OSError"}


def test_reserved_addresses_are_not_connected_to():
    """A program that sends a connection to "this host" or to loopback through its device reaches
    nothing of the host, also with "outside".
    """
    asked, found = on_host("""
BOUND = '''
import json, socket
one = socket.socket()
one.settimeout(20)
one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
try:
    one.connect(("0.1.0.1", 7000))
    print(json.dumps(one.recv(1).decode()))
except OSError as error:
    print(json.dumps(type(error).__name__))
'''
with Container(network="outside") as c:
    print(json.dumps([run(c, BOUND), attempts(c)]))
""")
    assert asked == "ConnectionResetError"
    assert [(one["host"], one["reason"]) for one in found] == [
        ("0.1.0.1", "an address of this host")
    ]


def test_connections_that_nobody_reads_or_ends():
    """Connections that are full, half closed or reset, and a hundred at once, deny no other one."""
    assert (
        on_host("""
FLOOD = '''
import socket, struct, sys
made = []
for number in range(100):
    one = socket.create_connection(("203.0.113.1", 7000), timeout=20)
    one.setblocking(False)
    made.append(one)
for _ in range(5):
    for one in made:
        try: one.send(bytes(1 << 20))
        except BlockingIOError: pass
for one in made[::3]:
    one.shutdown(socket.SHUT_WR)
for one in made[1::3]:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()
print("flooded", flush=True)
sys.stdin.read()
'''
silent = socket.create_server(("203.0.113.1", 7000), backlog=1000)
with Container(network=["203.0.113.1:7000", "pypi.test:443"]) as c:
    flood = c.popen([sys.executable, "-SEc", FLOOD], stdin=-1, stdout=-1)
    assert flood.stdout.readline() == b"flooded\\n"
    print(json.dumps(run(c, CLIENT)))
    flood.kill()
""")
        == "hello"
    )
