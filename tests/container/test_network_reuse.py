"""Network namespaces that serve a second container: only those in which nothing was left."""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pytest_sandbox import Container
from pytest_sandbox.linux import namespaces
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.network_namespace import NetworkNamespace
from pytest_sandbox.linux.syscall_batch import SyscallBatch

#: asm-generic/socket.h, since Linux 5.14: no two namespaces have the same, not even in succession.
SO_NETNS_COOKIE = 71
#: linux/in6.h
IPV6_FLOWLABEL_MGR = 32
STATE = ("dev", "snmp", "snmp6", "ip6_flowlabel", "route", "fib_trie", "if_inet6", "unix", "tcp")
SYSCTLS = (
    "ipv4/ip_unprivileged_port_start",
    "ipv4/ip_default_ttl",
    "core/somaxconn",
    "unix/max_dgram_qlen",
)


def cookie() -> int:
    with socket.socket() as any_socket:
        data = any_socket.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    return struct.unpack("Q", data)[0]


def state() -> dict[str, str]:
    """Return what a process can see of its network namespace."""
    files = {name: f"/proc/self/net/{name}" for name in STATE}
    files |= {name: f"/proc/sys/net/{name}" for name in SYSCTLS}
    found = {}
    for name, path in files.items():
        with suppress(FileNotFoundError):
            found[name] = Path(path).read_text()
    return found


def containers_until_reused(limit: float = 10.0) -> bool:
    """Return whether two of the next containers have the same network namespace."""
    seen, deadline = set(), time.monotonic() + limit
    while time.monotonic() < deadline:
        with Container() as container:
            found = container.call(cookie)
        if found in seen:
            return True
        seen.add(found)
    return False


def test_unused_namespace_serves_a_later_container():
    """Otherwise the tests below could not fail."""
    assert containers_until_reused()


def send_to_itself():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()


def send_by_ipv6():
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("::1", 9))


def fail_to_connect():
    with socket.socket() as client, suppress(OSError):
        client.connect(("192.0.2.1", 80))


def leave_flow_label():
    """The label stays for a minute after its socket was closed (net/ipv6/ip6_flowlabel.c)."""
    request = struct.pack(
        "16sIBBHHHI", socket.inet_pton(socket.AF_INET6, "::1"), socket.htonl(0x12345), 0, 1, 1, 60,
        60, 0,
    )  # fmt: skip
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as labelled:
        labelled.setsockopt(socket.IPPROTO_IPV6, IPV6_FLOWLABEL_MGR, request)


def leave_abstract_socket():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0left")
    listener.listen()
    os.set_inheritable(listener.fileno(), True)
    if os.fork() == 0:
        os.setsid()
        time.sleep(60)
        os._exit(0)


def leave_sockets_in_flight():
    """Sockets in a cycle of messages to each other live until the kernel collects them
    (net/unix/garbage.c).
    """
    one, other = socket.socketpair()
    listener = socket.create_server(("127.0.0.1", 7))
    socket.send_fds(one, [b"x"], [other.fileno(), listener.fileno()])
    socket.send_fds(other, [b"x"], [one.fileno()])


def write_sysctls():
    for name in SYSCTLS:
        with suppress(OSError):
            Path(f"/proc/sys/net/{name}").write_text("99")


@pytest.mark.parametrize(
    "leave",
    [
        send_to_itself,
        send_by_ipv6,
        fail_to_connect,
        leave_flow_label,
        leave_abstract_socket,
        leave_sockets_in_flight,
        write_sysctls,
    ],
)
def test_nothing_is_left_to_later_containers(leave):
    with Container() as container:
        expected = container.call(state)
    for _ in range(3):
        with Container() as container:
            if leave is leave_flow_label:
                with suppress(OSError):  # without IPv6
                    container.call(leave)
            else:
                container.call(leave)
        for _ in range(3):
            with Container() as container:
                assert container.call(state) == expected


@pytest.mark.parametrize("leave", [send_to_itself, send_by_ipv6, fail_to_connect])
def test_used_namespace_is_not_used_again(leave):
    with Container() as container:
        used = container.call(cookie)
        container.call(leave)
    for _ in range(6):
        with Container() as container:
            assert container.call(cookie) != used


@pytest.mark.parametrize(
    "settings",
    [
        {"cap_add": ["NET_RAW"]},
        {"cap_add": ["NET_ADMIN"]},
        {"privileged": True},
        {"security_opt": ["seccomp=unconfined"]},
        {"volumes": ["/proc:/host-proc"]},
        {"publish": ["80"]},
    ],
    ids=lambda settings: next(iter(settings)),
)
@pytest.mark.needs("root")
def test_namespace_of_more_powerful_payloads_is_not_used_again(settings):
    used = set()
    for _ in range(3):
        with Container(**settings) as container:
            used.add(container.call(cookie))
    assert len(used) == 3
    for _ in range(4):
        with Container() as container:
            assert container.call(cookie) not in used


@pytest.mark.needs("bridge")
def test_namespace_that_was_connected_is_not_used_again(net):
    with Container() as container:
        used = container.call(cookie)
        net.connect(container)
        net.disconnect(container)
    for _ in range(4):
        with Container() as container:
            assert container.call(cookie) != used


def open_in(network: NetworkNamespace, call: str, *arguments: int) -> int:
    """Open a descriptor in a namespace from outside; return it."""
    batch = SyscallBatch()
    batch.add("enter", "setns", network.owner, sc.CLONE_NEWUSER)
    batch.add("enter", "setns", network.fd, sc.CLONE_NEWNET)
    opened = batch.add("open", call, *arguments)
    batch.run_in_child(sc.CLONE_FILES)
    return batch[opened]


@pytest.fixture
def network():
    owner = namespaces.make_user_namespace()
    found = NetworkNamespace(owner, is_watched=True)
    yield found
    found.close()
    os.close(owner)


@pytest.mark.needs("root")
@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (socket.AF_INET, socket.SOCK_STREAM),
        (socket.AF_INET, socket.SOCK_DGRAM),
        (socket.AF_UNIX, socket.SOCK_STREAM),
        (socket.AF_NETLINK, socket.SOCK_RAW),
        (socket.AF_PACKET, socket.SOCK_RAW),
    ],
)
def test_socket_that_is_held_elsewhere_counts_as_used(network, family, kind):
    assert network.looks_new()
    held = open_in(network, "socket", family, kind, 0)
    assert not network.looks_new()
    os.close(held)


@pytest.mark.needs("root")
def test_namespace_that_is_not_watched_never_looks_new():
    owner = namespaces.make_user_namespace()
    network = NetworkNamespace(owner, is_watched=False)
    assert not network.looks_new()
    network.close()
    network.close()
    os.close(owner)
