"""Networks of containers: names, addresses, ports, isolation, and cleanup."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import errno
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from crash import leftovers
from descriptors import open_descriptors

from pytest_sandbox import (
    Container,
    ContainerStopped,
    Network,
    SandboxError,
    SettingsError,
    SetupError,
    UnsupportedError,
    host,
)
from pytest_sandbox.client import session
from pytest_sandbox.container.hosts_file import Hosts
from pytest_sandbox.linux import process, rtnetlink

pytestmark = pytest.mark.needs("bridge")

codecs.lookup("idna")  # imported here for functions in a root without the standard library

SERVER = """
import socket
with socket.create_server(("", {port}), backlog=50) as server:
    print("up", flush=True)
    while True:
        with server.accept()[0] as connection:
            connection.sendall({text!r})
"""


@pytest.fixture
def pair(net):
    with Container(network=net, hostname="db") as db, Container(network=net, hostname="web") as web:
        yield db, web


@contextlib.contextmanager
def serving(container, port, text):
    """Run a server in the container that sends *text* to each client."""
    with container.popen(
        [sys.executable, "-c", SERVER.format(port=port, text=text)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert "up\n" == process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def receive(host, port):
    """Return what a server sends, or the name of the error."""
    try:
        with socket.create_connection((host, port), timeout=5) as connection:
            return connection.recv(100)
    except OSError as error:
        return type(error).__name__ if error.errno is None else os.strerror(error.errno)


def looked_up(name):
    try:
        return socket.gethostbyname(name)
    except socket.gaierror:
        return None


def devices():
    """Return the devices of this network namespace, without those that some kernels create in each,
    and the IPv6 addresses of all.
    """
    with open("/proc/net/if_inet6", encoding="ascii") as file:
        addresses = sorted(line.split()[5] for line in file)
    return [
        name
        for _number, name in socket.if_nameindex()
        if name in {"lo", "eth0", "bridge"} or name.startswith("port")
    ], addresses


# -- names, addresses and ports


@pytest.mark.vm
def test_containers_find_each_other_by_name(pair):
    """Each container finds the other, and itself, by host name and by id, at the address of
    ``ip_address``.
    """
    db, web = pair
    assert ("172.30.0.2", "172.30.0.3") == (db.ip_address, web.ip_address)
    for one in pair:
        assert [db.ip_address, web.ip_address] * 2 == [
            one.call(looked_up, name) for name in ("db", "web", db.id, web.id)
        ]
    with serving(db, 5432, b"rows"), serving(web, 80, b"page"):
        assert (b"rows", b"page", b"rows") == (
            web.call(receive, "db", 5432),
            db.call(receive, "web", 80),
            web.call(receive, db.id, 5432),
        )


def test_commands_resolve_names(pair):
    """The C library of a command resolves the names."""
    done = pair[1].run(["getent", "hosts", "db"], capture_output=True, text=True, check=True)
    assert {"172.30.0.2", "db", pair[0].id} == set(done.stdout.split())


def test_a_container_without_hostname_is_found_by_id(net):
    """Without ``hostname``, the id is the name."""
    with Container(network=net) as one, Container(network=net) as other:
        assert one.ip_address == other.call(looked_up, one.id)
        assert {one.id: one.ip_address, other.id: other.ip_address} == net.addresses


def test_each_container_has_its_own_loopback(pair):
    """127.0.0.1 is up and named localhost, and its servers are not reachable from a neighbour."""
    db, web = pair
    assert ["127.0.0.1"] * 2 == [one.call(looked_up, "localhost") for one in pair]
    with serving(db, 80, b"db"), serving(web, 80, b"web"):
        assert (b"db", b"web") == (
            db.call(receive, "127.0.0.1", 80),
            web.call(receive, "127.0.0.1", 80),
        )


def test_the_same_port_in_two_containers(pair):
    """Servers of two containers on the same port do not conflict."""
    db, web = pair
    with serving(db, 8000, b"from db"), serving(web, 8000, b"from web"):
        assert (b"from db", b"from web") == (
            web.call(receive, "db", 8000),
            web.call(receive, "web", 8000),
        )


def test_udp(pair):
    """UDP datagrams reach the other container and return."""
    db, web = pair
    echo = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 53)); print(1, "
        "flush=True); s.sendto(*s.recvfrom(100))"
    )

    def ask():
        with socket.socket(type=socket.SOCK_DGRAM) as one:
            one.settimeout(10)
            one.sendto(b"hello", ("db", 53))
            return one.recvfrom(100)

    with db.popen([sys.executable, "-c", echo], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert (b"hello", ("172.30.0.2", 53)) == tuple(web.call(ask))


def test_the_device_has_ipv4_only(pair):
    """The device has one IPv4 address and no other; ::1 exists."""
    assert (["lo", "eth0"], ["lo"]) == tuple(pair[0].call(devices))


def test_subnet():
    """Addresses are from the subnet, from its second one on, and are not reused at once."""
    with Network("mine", subnet="10.1.2.0/29") as net:
        assert ("mine", "10.1.2.0/29", "<Network mine 10.1.2.0/29 running>") == (
            net.name,
            net.subnet,
            repr(net),
        )
        with Container(network=net) as one, Container(network=net) as other:
            assert ["10.1.2.2", "10.1.2.3"] == [one.ip_address, other.ip_address]
        with Container(network=net) as third:
            assert "10.1.2.4" == third.ip_address


def test_ip_address_without_a_network(net):
    """``ip_address`` is None before the start and without a network."""
    with Container() as alone:
        assert [None, None] == [alone.ip_address, Container(network=net).ip_address]


# -- starting and closing


@pytest.mark.vm
def test_a_later_container_is_found(net):
    """A container finds one that was started after it, also from a process that ran before."""
    with Container(network=net, hostname="first") as first:
        assert None is first.call(looked_up, "second")
        with Container(network=net, hostname="second") as second:
            assert second.ip_address == first.call(looked_up, "second")
        assert None is first.call(looked_up, "second")
        assert {"first": first.ip_address} == net.addresses


def test_a_name_is_reused(net):
    """A service that is started again under its name is reached at its new address at once."""
    with Container(network=net, hostname="client") as client:
        for turn in range(5):
            with Container(network=net, hostname="db") as db, serving(db, 80, b"%d" % turn):
                assert b"%d" % turn == client.call(receive, "db", 80)


def test_an_address_is_reused():
    """In a small subnet, a container that gets a used address is reached by its neighbours."""
    with Network(subnet="10.0.0.0/29") as net, Container(network=net, hostname="client") as client:
        seen = []
        for turn in range(6):
            with Container(network=net) as server, serving(server, 80, b"%d" % turn):
                seen.append(server.ip_address)
                assert b"%d" % turn == client.call(receive, server.ip_address, 80)
        assert len(seen) == 6 > len(set(seen)) == 4


def test_a_duplicate_name_is_refused(pair, net):
    """A second container with the same host name is refused with the name and its address."""
    with pytest.raises(
        SettingsError,
        match=r"hostname='db' is not valid; accepted: a name .* not used on .*; 172.30.0.2 has it",
    ):
        Container(network=net, hostname="db").start()
    for name, address in (
        ("DB", "172.30.0.2"),
        (pair[1].id, "172.30.0.3"),
        ("localhost", "127.0.0.1"),
    ):
        with pytest.raises(SettingsError, match=f"{address} has it"):
            Container(network=net, hostname=name).start()
    with Container(network=net, hostname="db2") as other:
        assert other.ip_address == pair[0].call(looked_up, "db2")


def test_containers_that_start_at_once():
    """Containers that threads start together with their network have different addresses and find
    each other.
    """
    net = Network()
    with ThreadPoolExecutor(20) as pool, contextlib.ExitStack() as opened:
        made = list(
            pool.map(
                lambda number: Container(network=net, hostname=f"c{number}").start(), range(20)
            )
        )
        for container in made:
            opened.callback(container.close)
        expected = {f"c{number}": container.ip_address for number, container in enumerate(made)}
        assert 20 == len(set(expected.values()))
        assert expected == net.addresses
        assert list(expected.values()) == made[7].call(
            lambda: [looked_up(name) for name in expected]
        )
        with serving(made[0], 80, b"hello"):
            assert [b"hello"] * 20 == list(
                pool.map(lambda container: container.call(receive, "c0", 80), made)
            )
    assert {} == net.addresses
    net.close()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_containers_close_in_any_order(net, order):
    """The remaining containers reach each other, whichever closes first."""
    made = [Container(network=net, hostname=f"c{number}").start() for number in range(3)]
    for position, number in enumerate(order):
        left = [made[other] for other in order[position:]]
        with serving(left[-1], 80, b"here"):
            assert b"here" == left[0].call(receive, left[-1].hostname, 80)
        made[number].close()
        made[number].close()
    assert {} == net.addresses


@pytest.mark.needs("root")
def test_the_address_stays_after_a_commit(pair):
    """A committed container keeps its address and its neighbours."""
    db, web = pair
    db.write_text("/srv/x", "x")
    with Container(image=db.commit(), network=db.settings.network, hostname="copy") as copy:
        assert "x" == copy.read_text("/srv/x")
        with serving(db, 80, b"still here"), serving(copy, 80, b"me too"):
            assert "172.30.0.2" == db.ip_address
            assert [b"still here", b"me too"] == [
                web.call(receive, name, 80) for name in ("db", "copy")
            ]


# -- isolation


@pytest.mark.vm
def test_networks_are_isolated(pair):
    """The same address on another network is another container, and neither names nor
    packets pass.
    """
    with (
        Network() as other,
        Container(network=other, hostname="stranger") as stranger,
        serving(pair[0], 80, b"secret"),
    ):
        assert "172.30.0.2" == stranger.ip_address == pair[0].ip_address
        assert [None, None] == [stranger.call(looked_up, "db"), pair[0].call(looked_up, "stranger")]
        assert "Connection refused" == stranger.call(receive, "172.30.0.2", 80)
        assert b"secret" == pair[1].call(receive, "172.30.0.2", 80)


def test_nothing_outside_is_reachable(pair):
    """Neither the internet, nor an address of the host, nor a gateway is reachable, and no name
    server is asked.
    """
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        hosts_own = {
            address[4][0]
            for address in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
        } - {
            "127.0.0.1",
            "127.0.1.1",
        }
        for outside in ["192.0.2.1", *hosts_own]:
            assert "Network is unreachable" == pair[0].call(receive, outside, port)
        assert ["Connection refused", "No route to host"] == [
            pair[0].call(receive, where, port) for where in ("127.0.0.1", "172.30.0.1")
        ]
    assert None is pair[0].call(looked_up, "example.org")


@pytest.mark.vm
def test_the_hosts_network_does_not_change(pair):
    """The host has no device of the network, and no route to it."""
    assert [] == [
        name
        for _number, name in socket.if_nameindex()
        if name.startswith("port100") or name == "bridge"
    ]
    with open("/proc/net/arp", encoding="ascii") as file:
        assert "02:42:ac:1e:00:0" not in file.read()


def test_a_prepared_container_is_on_no_network(net):
    """A prepared container is connected to the network of the container that uses it, and to no
    other.
    """
    for _ in range(2):
        with (
            Container(network=net, hostname="a") as one,
            Container() as alone,
            Network() as other,
            Container(network=other) as third,
        ):
            assert (["lo"], ["lo"]) == tuple(alone.call(devices))
            assert (["lo", "eth0"], ["lo"]) == tuple(third.call(devices))
            assert [None, None, one.ip_address] == [
                container.call(looked_up, "a") for container in (alone, third, one)
            ]
            connected = {
                pid
                for pid in leftovers.containers_of(os.getpid())
                if "eth0" in Path(f"/proc/{pid}/net/dev").read_text()
            }
            assert {one.pid, third.pid} == connected


def test_the_network_cannot_be_configured_inside(pair):
    """As in docker, a container cannot change its addresses or devices without NET_ADMIN."""
    change = (
        ["ip", "link", "set", "eth0", "down"]
        if os.path.exists("/usr/sbin/ip")
        else [sys.executable, "-c", DOWN]
    )
    done = pair[0].run(change, capture_output=True, text=True)
    assert (True, True) == (done.returncode != 0, "Operation not permitted" in done.stderr)


DOWN = """
import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh14x", b"eth0", 0))
"""


@pytest.mark.needs("root")
@pytest.mark.vm
def test_the_hosts_file_cannot_be_changed_inside(pair):
    """Root inside cannot write, cover or unmount the hosts file of the network."""
    before = pair[1].read_text("/etc/hosts")
    for attempt in (
        "echo 10.9.9.9 web >> /etc/hosts",
        "rm -f /etc/hosts",
        "mv /etc/hosts /etc/old",
        "umount /etc/hosts",
        "mount -o remount,bind,rw /etc/hosts",
        "truncate -s 0 /etc/hosts",
        "chmod 777 /etc/hosts",
    ):
        assert 0 != pair[0].run(attempt, shell=True, stderr=subprocess.DEVNULL).returncode, attempt
    assert (before, before) == (pair[1].read_text("/etc/hosts"), pair[0].read_text("/etc/hosts"))
    assert "/etc/hosts" not in {change.path for change in pair[0].diff()}


@pytest.mark.vm
def test_a_fork_inside_has_no_descriptor_of_the_network(pair):
    """A fork of this process inside has neither the network namespace nor a socket in it."""
    bridge = pair[0].settings.network._bridge
    ours = {os.fstat(fd).st_ino for fd in (bridge._namespace, bridge._socket)}

    def held():
        numbers = []
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the descriptor of the listing
                numbers.append(os.fstat(int(name)).st_ino)
        return numbers

    assert ours <= set(held())
    assert set() == ours & set(pair[0].call(held))


def test_hosts_lines_are_whole_during_a_change(tmp_path):
    """A reader of the hosts file finds every other line complete, and the place of a removed line
    is reused.
    """
    hosts = Hosts(str(tmp_path / "hosts"))
    hosts.add("10.0.0.2", "before", "1-1")
    hosts.add("10.0.0.3", "changing", "1-2")
    hosts.add("10.0.0.4", "after", "1-3")
    length = (tmp_path / "hosts").stat().st_size

    def change():
        for _ in range(500):
            hosts.remove("10.0.0.3")
            hosts.add("10.0.0.3", "changing", "1-2")

    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change)
        while not changing.done():
            lines = [line.rstrip() for line in (tmp_path / "hosts").read_text().splitlines()]
            assert ["10.0.0.2\tbefore 1-1", "10.0.0.4\tafter 1-3"] == [lines[-3], lines[-1]]
        changing.result()
    assert length == (tmp_path / "hosts").stat().st_size


# -- with other settings


@pytest.mark.vm
def test_network_with_other_settings(net, busybox_root):
    """The names resolve on a read-only root and on a directory as the root, and are not listed as
    changes.
    """
    with Container(network=net, hostname="db") as db:
        for number, more in enumerate(
            (
                {"read_only": True},
                {"image": busybox_root},
                {"image": busybox_root, "read_only": True},
            )
        ):
            with Container(network=net, hostname=f"c{number}", **more) as one:
                assert f"{db.ip_address}\tdb {db.id}" in one.read_text("/etc/hosts")
                assert one.ip_address == db.call(looked_up, f"c{number}")
                with serving(db, 80, b"x"):
                    assert b"x" == one.call(receive, db.ip_address, 80)
                assert [] == one.diff()


@pytest.mark.needs("root")
@pytest.mark.parametrize(
    "more",
    [
        {"privileged": True},
        {"cap_add": ["NET_ADMIN"]},
        {"user": "1234:1234"},
        {"cap_drop": ["ALL"]},
    ],
)
def test_network_with_any_user_and_capabilities(net, more):
    """The network works for any user and any capabilities of the container's processes."""
    with (
        Container(network=net, hostname="db") as db,
        Container(network=net, **more) as one,
        serving(db, 80, b"x"),
    ):
        assert b"x" == one.call(receive, "db", 80)


@pytest.mark.needs("root")
def test_a_volume_at_etc_hosts_is_used(net, tmp_path):
    """A volume at /etc/hosts takes precedence over the network's file; the name server has the
    other names.
    """
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n172.30.0.2 myself\n")
    with (
        Container(
            network=net, hostname="db", volumes=[f"{tmp_path / 'hosts'}:/etc/hosts:ro"]
        ) as one,
        Container(network=net) as other,
    ):
        assert ["172.30.0.2", other.ip_address] == [
            one.call(looked_up, "myself"),
            one.call(looked_up, other.id),
        ]
        assert one.ip_address == other.call(looked_up, "db")


def test_the_hosts_file_is_readable_with_any_umask():
    """Every user inside can read the hosts file, whatever the umask of this process is."""
    before = os.umask(0o077)
    try:
        with Network() as net, Container(network=net, hostname="db") as db:
            assert 0o444 == os.stat(net._hosts.path).st_mode & 0o444
            assert "172.30.0.2" == db.call(looked_up, "db")
    finally:
        os.umask(before)


# -- start and end


def test_a_network_starts_with_its_first_container():
    """A network that is created at module level uses nothing before its first container, and ends
    with close().
    """
    net = Network("shared")
    assert "<Network shared 172.30.0.0/24 created>" == repr(net)
    with Container(network=net) as one:
        assert "172.30.0.2" == one.ip_address
    net.close()
    net.close()
    assert "<Network shared 172.30.0.0/24 closed>" == repr(net)


def test_a_closed_network_does_not_start():
    """A network that was closed, also before its start, cannot be started."""
    net, unused = Network("once"), Network("never")
    net.start()
    assert net is net.start()
    for one in (net, unused):
        one.close()
        for start in (one.start, Container(network=one).start):
            with pytest.raises(
                SandboxError, match=f"the network {one.name} is closed. Make a new one"
            ):
                start()


def test_close_with_containers_is_refused(pair, net):
    """close() raises an error that names the containers on the network, and the network goes on."""
    with pytest.raises(SandboxError) as caught:
        net.close()
    expected = (
        f"the network {net.name} has active endpoints: db (172.30.0.2), web (172.30.0.3). "
        "Close these containers first."
    )
    assert expected == str(caught.value)
    with serving(pair[0], 80, b"x"):
        assert b"x" == pair[1].call(receive, "db", 80)


def test_an_exception_of_the_block_is_raised():
    """An exception leaves the block although a container is open, and the network ends with the
    container.
    """
    with pytest.raises(ZeroDivisionError), Network() as net:  # noqa: PT012
        left = Container(network=net).start()
        1 / 0  # noqa: B018
    assert 0 == left.run(["true"]).returncode
    left.close()
    net.close()


def test_a_failed_start_leaves_the_network_unchanged(net):
    """A container that was not created has no address and no name."""
    with pytest.raises(SettingsError):
        Container(network=net, volumes=["/no/such/directory:/x"]).start()
    with pytest.raises(SandboxError):
        Container(network=net, hostname="x", user="nobody-has-this-name").start().run(["true"])
    with Container(network=net, hostname="y") as one:
        assert one.ip_address == net.addresses["y"]


@pytest.mark.parametrize(
    "subnet",
    [
        "172.30.0.0/31",
        "172.30.0.0/32",
        "172.30.0.0",
        "172.30.0.5/24",
        "172.30.0/24",
        "127.0.0.0/24",
        "224.0.0.0/24",
        "240.0.0.0/24",
        "0.0.0.0/0",
        "0.0.0.0/24",
        "fd00::/64",
        "",
        "x",
        5,
        None,
        b"172.30.0.0/24",
    ],
)
def test_an_invalid_subnet_is_refused(subnet):
    """SettingsError has key, value and accepted form."""
    with pytest.raises(
        SettingsError,
        match=r'subnet=.* is not valid; accepted: an IPv4 network .* such as "172.30.0.0/24"',
    ):
        Network(subnet=subnet)


@pytest.mark.parametrize("name", ["", "a b", "-a", "ä", "a/b", 5])
def test_an_invalid_name_is_refused(name):
    """Names follow docker's rule."""
    with pytest.raises(SettingsError, match=r"name=.* is not valid; accepted: letters, digits"):
        Network(name)


def test_internal_false_is_refused():
    """The error of internal=False names the alternative."""
    with pytest.raises(UnsupportedError, match=r'internal=False.*network="host"'):
        Network(internal=False)


def test_errors_of_the_kernel(monkeypatch):
    """A kernel without bridges is an UnsupportedError with a remedy; any other error names the
    step.
    """

    def refuse(number):
        monkeypatch.setattr(
            rtnetlink,
            "_ask",
            lambda *_requests: (_ for _ in ()).throw(OSError(number, os.strerror(number))),
        )

    lacking = replace(
        host.find("bridge"),
        found=False,
        why="Operation not supported",
        remedy="As root: modprobe -a bridge veth.",
    )
    monkeypatch.setattr(host, "find", lambda _name: lacking)
    net = Network("mine")
    refuse(errno.EOPNOTSUPP)
    with pytest.raises(
        UnsupportedError,
        match=r"a Network is not supported here. Operation not supported. As root: modprobe -a "
        r"bridge veth",
    ):
        Container(network=net).start()
    refuse(errno.ENOMEM)
    with pytest.raises(
        SetupError, match="could not be made: make a network: Cannot allocate memory"
    ):
        net.start()
    monkeypatch.undo()
    with Container(network=net) as one:
        assert "172.30.0.2" == one.ip_address
    net.close()


def test_all_addresses_in_use():
    """The error names the number of addresses and the remedy; a closed container frees one."""
    with Network("small", subnet="10.0.0.0/30") as net:
        with (
            Container(network=net),
            pytest.raises(
                SetupError,
                match=r"connect to the network small: all 1 addresses of 10.0.0.0/30 are in use. "
                r"Close a container",
            ),
        ):
            Container(network=net).start()
        with Container(network=net) as again:
            assert "10.0.0.2" == again.ip_address


def test_a_network_belongs_to_its_process(net):
    """It cannot be pickled; a fork that uses it gets an error, and the parent's network goes on."""
    with pytest.raises(TypeError, match=f"the network {net.name} cannot be pickled"):
        pickle.dumps(net)

    def use_it():
        try:
            Container(network=net).start()
        except SandboxError as error:
            net.close()
            return str(error)

    assert f"the network {net.name} is another process's. Make a new one." == in_fork(use_it)
    with Container(network=net) as one:
        assert one.ip_address == one.call(looked_up, one.id)


def test_a_fork_starts_its_own_network():
    """A network that was not started before the fork starts in each process."""
    net = Network()

    def use_it():
        with Container(network=net) as one:
            return one.call(looked_up, one.id)

    assert ("172.30.0.2", "172.30.0.2") == (in_fork(use_it), use_it())
    net.close()


def in_fork(function):
    """Return what a function returns in a fork of this process, which ends by os._exit."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writer, str(function()).encode())
        except BaseException as error:  # noqa: BLE001 - it is told
            os.write(writer, repr(error).encode())
        finally:
            session._close_at_exit()
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said


def test_a_network_in_a_running_event_loop(net):
    """A container starts on a network in a test that is a coroutine."""

    async def body():
        with Container(network=net) as one:
            return one.ip_address

    assert "172.30.0.2" == asyncio.run(body())


def test_no_descriptor_is_left(net):
    """Neither a container on a network nor a network leaves a descriptor open."""

    def use():
        with Network() as own, Container(network=own), Container(network=net):
            pass

    use()
    use()  # the first starts the name server of net: meanwhile a prewarmed container may arrive
    before, threads = open_descriptors(), threading.active_count()
    for _ in range(5):
        use()
    Network().start()  # without a reference
    assert before == open_descriptors()
    assert threading.active_count() <= threads


# -- leaks


VICTIM = """
import os, sys, time
from pytest_sandbox import Container, Network
net = Network().start()
with Container(network=net, hostname="a") as a, Container(network=net, hostname="b") as b:
    process = b.popen(["sleep", "1000"])
    print(os.fstat(net._bridge._namespace).st_ino, net._hosts.path, flush=True)
    sys.stdin.readline()
    {end}
"""


def holders(inode):
    """Return the processes that are in a network namespace or have a descriptor of it."""
    found = []
    for pid in leftovers.every_pid():
        with contextlib.suppress(OSError):
            links = [
                f"/proc/{pid}/ns/net",
                *(f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd")),
            ]
            for link in links:
                with contextlib.suppress(OSError):
                    found += [pid] if os.readlink(link) == f"net:[{inode}]" else []
    return found


@pytest.mark.parametrize(
    "end",
    [
        "pass",
        "sys.exit()",
        "os._exit(0)",
        "os.kill(os.getpid(), 9)",
        "os.kill(a.handle.launcher.process.pid, 9); time.sleep(60)",
    ],
)
def test_a_killed_process_leaves_no_network(end):
    """The network namespace ends with its process, and the hosts file with the session."""
    code = [sys.executable, "-c", VICTIM.format(end=end)]
    with subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as victim:
        inode, path = victim.stdout.readline().split()
        assert [victim.pid] == holders(inode)
        victim.stdin.write("end\n")
        victim.stdin.flush()
        if "launcher" in end:
            leftovers.await_no_processes(victim.pid)
            victim.send_signal(signal.SIGKILL)
    assert [] == leftovers.of(victim.pid)
    assert not os.path.exists(path)


@pytest.mark.needs("root")
def test_networks_end_with_their_launcher():
    """The next container on such a network gets an error; a new network works."""
    net = Network("old")
    with Container(network=net, hostname="a") as one:
        one.handle.launcher.process.kill()
        assert process.ended(one.handle.pidfd, 30)
        with pytest.raises(ContainerStopped):
            net.plug(one.handle.endpoint, one.handle.pidfd)
        one.handle.launcher.process.wait()
        with pytest.raises(
            SandboxError, match=r"the network old is gone with its launcher. Make a new one"
        ):
            Container(network=net).start()
    net.close()
    with Network() as new, Container(network=new) as one:
        assert "172.30.0.2" == one.ip_address


#: Inside: tries to take the traffic of another container of its network; prints what succeeds.
SPOOF = """
import fcntl, json, socket, struct, sys
other, one = socket.inet_aton(sys.argv[1]), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
# SIOCSIFADDR, SIOCSARP, SIOCSIFHWADDR, SIOCSIFFLAGS with IFF_PROMISC (netdevice(7), arp(7))
address = struct.pack("=HH4s8x", socket.AF_INET, 0, other)
hardware = struct.pack("=H14s", 1, bytes([2, 2, 2, 2, 2, 2]))
attempts = {
    "packets": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)),
    "address": lambda: fcntl.ioctl(one, 0x8916, struct.pack("=16s16s8x", b"eth0", address)),
    "arp": lambda: fcntl.ioctl(one, 0x8955, struct.pack(
        "=16s16si16s16s", address, hardware, 6, b"", b"eth0")),
    "hardware": lambda: fcntl.ioctl(one, 0x8924, struct.pack("=16s16s8x", b"eth0", hardware)),
    "promiscuous": lambda: fcntl.ioctl(one, 0x8914, struct.pack("=16sH22x", b"eth0", 0x143)),
}
done = []
for name, attempt in attempts.items():
    try:
        attempt()
        done.append(name)
    except PermissionError:
        pass
print(json.dumps(done))
"""


@pytest.mark.parametrize("settings", [{}, {"cap_add": ["NET_ADMIN", "NET_RAW"]}])
def test_a_container_cannot_take_the_traffic_of_another(settings):
    """It can change neither addresses nor ARP, and read no frames, without a capability by name."""
    with (
        Network() as network,
        Container(network=network) as victim,
        Container(network=network, **settings) as container,
    ):
        done = container.run(
            [sys.executable, "-SEc", SPOOF, victim.ip_address], capture_output=True, text=True
        )
        expected = ["packets", "address", "arp", "hardware", "promiscuous"] if settings else []
        assert expected == json.loads(done.stdout), done.stderr
