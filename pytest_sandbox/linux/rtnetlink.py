"""Network namespaces: loopback up, and docker's two settings for a container's own stack; bridges,
which connect several (bridge(8), veth(4)).

What is said to the kernel in rtnetlink(7) is written by pyroute2, and sent here: its own sockets
run an event loop, which a test that runs one already does not allow, and cannot be opened in the
namespaces of who is not root.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

from pytest_sandbox.linux import process
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.syscall_batch import SyscallBatch

if TYPE_CHECKING:
    from ipaddress import IPv4Interface

__all__ = ["Bridge", "add_network", "make_network"]

_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x41
#: Any process may listen on any port, and send an ICMP echo (moby sets both in a container's own
#: network namespace).
_SYSCTLS = {b"ip_unprivileged_port_start": b"0", b"ping_group_range": b"0 2147483647"}

# Of linux/rtnetlink.h, linux/netlink.h and linux/if.h.
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK, _RTM_NEWADDR = 16, 17, 18, 20
_NLMSG_ERROR = 2
_REQUEST, _ACKNOWLEDGED, _NEW = 0x1, 0x5, 0x605
_IFF_UP = 0x1
_IFLA_OPERSTATE, _IF_OPER_UP = 16, 6
_DEVICE = "eth0"  # as in docker's containers
# Numbers that no device has which the kernel makes by itself (sit0, tunl0, ...). Ports have those
# after the bridge's. The two ends of a cable have
# different ones: where they are the same in two namespaces, the kernel takes a second to say that a
# device has a carrier (linkwatch_urgent_event()).
_BRIDGE = _THERE = 1000
_PATIENCE = 5.0


def add_network(batch: SyscallBatch, step: str) -> None:
    """Give the calling process a network namespace of its own with loopback up (netdevice(7)), and
    docker's settings where it may.
    """
    batch.add(step, "unshare", sc.CLONE_NEWNET)
    any_socket = batch.add(
        step, "socket", socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0
    )
    batch.add(
        step, "ioctl", any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP_RUNNING)
    )
    batch.close(step, any_socket)
    for name, value in _SYSCTLS.items():
        # A kernel without IPv4 ping sockets, a /proc/sys that an outer container made read-only,
        # groups beyond what the user namespace maps.
        batch.write(step, b"/proc/sys/net/ipv4/" + name, value, go_on=True)


def make_network(user_fd: int) -> int:
    """Return the descriptor of a new network namespace that belongs to a user namespace."""
    batch = SyscallBatch()
    batch.add("make a network", "setns", user_fd, sc.CLONE_NEWUSER)
    add_network(batch, "make a network")
    found = batch.open("make a network", b"/proc/self/ns/net", os.O_RDONLY)
    batch.run_in_child(sc.CLONE_FILES)
    return batch[found]


class Bridge:
    """A bridge in a network namespace that nobody is in: containers are plugged into it, and reach
    each other and nothing else.

    The namespace is held by a descriptor of this process alone, and ends with it. ``builder_fd`` is
    the user namespace that it belongs to, -1 for the calling process's own. Any thread may call the
    methods. Raises :class:`OSError`, with EOPNOTSUPP where the kernel has no bridges.
    """

    def __init__(self, builder_fd: int) -> None:
        self._builder_fd = builder_fd
        self._talking = threading.Lock()
        self._held: tuple[int, ...] = ()
        batch = self._batch("make the bridge")
        batch.add("make the bridge", "unshare", sc.CLONE_NEWNET)
        # Nobody is to hear what a device without an address says by itself.
        for which in (b"all", b"default"):
            batch.write(
                "make the bridge",
                b"/proc/sys/net/ipv6/conf/" + which + b"/disable_ipv6",
                b"1",
                go_on=True,
            )
        self._held = self._namespace, self._socket = _opened(batch, "make the bridge")
        self._request(_link(_BRIDGE, IFNAME="bridge", LINKINFO=_kind("bridge"), up=True))

    def _batch(self, step: str) -> SyscallBatch:
        batch = SyscallBatch()
        if self._builder_fd >= 0:
            batch.add(step, "setns", self._builder_fd, sc.CLONE_NEWUSER)
        return batch

    def plug(self, number: int, pidfd: int, address: IPv4Interface) -> None:
        """Give the network namespace of a process the device eth0 with an address, which leads
        here.

        ``number`` is the port's, one for each address. Where its last container has just ended, the
        kernel may have that one's port still.
        """
        batch = self._batch("plug in")
        batch.add("plug in", "setns", pidfd, sc.CLONE_NEWNET)
        batch.write("plug in", b"/proc/sys/net/ipv6/conf/default/disable_ipv6", b"1", go_on=True)
        namespace, inner = _opened(batch, "plug in")
        try:
            self._lay_cable(_BRIDGE + number, namespace, address)
            _ask(inner, _address(_THERE, address), _link(_THERE, new=False, up=True))
            self._await_port(_BRIDGE + number)
        finally:
            os.close(namespace)
            os.close(inner)

    def _lay_cable(self, index: int, namespace: int, address: IPv4Interface) -> None:
        """Make a pair of devices: one here, a port of the bridge, the other there, with a hardware
        address that is made of its IP address.

        So whoever has an address next is found where the neighbours remember it.
        """
        hardware = ":".join(f"{byte:02x}" for byte in b"\x02\x42" + address.ip.packed)
        there = {
            "index": _THERE,
            "attrs": _attributes(IFNAME=_DEVICE, ADDRESS=hardware, NET_NS_FD=namespace),
        }
        cable = _kind("veth", {"attrs": [("VETH_INFO_PEER", there)]})
        request = _link(index, IFNAME=f"port{index}", MASTER=_BRIDGE, LINKINFO=cable, up=True)
        try:
            self._request(request)
        except FileExistsError:
            self._remove(index)
            self._request(request)

    def _remove(self, index: int) -> None:
        try:
            self._request(_link(index, kind=_RTM_DELLINK, new=False))
        except OSError as error:
            if error.errno != errno.ENODEV:  # it was going anyway
                raise

    def _await_port(self, index: int) -> None:
        """Wait until the bridge forwards what comes from a port: the kernel opens it a moment after
        the cable is in (operstates.rst).
        """
        request = _link(index, kind=_RTM_GETLINK, new=False, flags=_REQUEST)
        deadline = time.monotonic() + _PATIENCE
        while True:
            if _operating_state(*self._request(request)) == _IF_OPER_UP:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "the bridge does not open its port")
            time.sleep(0.001)  # no descriptor tells

    def _request(self, *requests: bytes) -> list[bytes]:
        with self._talking:
            if not self._held:
                raise OSError(errno.EBADF, "the network has ended")
            return _ask(self._socket, *requests)

    def close(self) -> None:
        """Let go of the namespace, which ends with its bridge; twice is fine."""
        with self._talking:
            self.abandon()

    def abandon(self) -> None:
        """Close it in a fork, where the thread that might be talking is not."""
        held, self._held = self._held, ()
        for fd in held:
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_held", ()):
            self.abandon()


def _opened(batch: SyscallBatch, step: str) -> tuple[int, int]:
    """Return descriptors of the network namespace that a batch enters, and of a socket in it that
    speaks rtnetlink(7).
    """
    namespace = batch.open(step, b"/proc/self/ns/net", os.O_RDONLY)
    talking = batch.add(
        step,
        "socket",
        socket.AF_NETLINK,
        socket.SOCK_RAW | socket.SOCK_CLOEXEC,
        socket.NETLINK_ROUTE,
    )
    batch.run_in_child(sc.CLONE_FILES)
    return batch[namespace], batch[talking]


def _ask(fd: int, *requests: bytes) -> list[bytes]:
    """Send requests in one go, and return their answers, which the kernel has ready then.

    Raises the first error among them.
    """
    while process.is_readable(fd):  # the answer to one that was interrupted
        os.read(fd, 1 << 16)
    os.write(fd, b"".join(requests))
    answers = [os.read(fd, 1 << 16) for _ in requests]
    for answer in answers:
        _length, kind, _flags, _sequence, _port, code = struct.unpack_from(
            "=IHHIIi", answer
        )  # struct nlmsghdr, struct nlmsgerr
        if kind == _NLMSG_ERROR and code:
            raise OSError(-code, os.strerror(-code))
    return answers


def _operating_state(answer: bytes) -> int:
    """Return IFLA_OPERSTATE of what RTM_GETLINK answers, which pyroute2 would take a millisecond to
    read as a whole.
    """
    at = 32  # after struct nlmsghdr and struct ifinfomsg
    while at + 4 < len(answer):
        length, kind = struct.unpack_from("=HH", answer, at)
        if kind == _IFLA_OPERSTATE:
            return answer[at + 4]
        at += max(4, (length + 3) & ~3)
    return 0


def _link(
    index: int,
    *,
    kind: int = _RTM_NEWLINK,
    new: bool = True,
    flags: int = 0,
    up: bool = False,
    **attributes: Any,
) -> bytes:
    """Return a request about the device ``index``."""
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    fields = {"index": index, "flags": _IFF_UP if up else 0, "change": _IFF_UP if up else 0}
    return _encoded(
        ifinfmsg(),
        kind,
        flags or (_NEW if new else _ACKNOWLEDGED),
        fields,
        _attributes(**attributes),
    )


def _address(index: int, address: IPv4Interface) -> bytes:
    """Return the request that gives a device an address."""
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

    text, everybody = str(address.ip), str(address.network.broadcast_address)
    fields = {"family": socket.AF_INET, "prefixlen": address.network.prefixlen, "index": index}
    attributes = [("IFA_ADDRESS", text), ("IFA_LOCAL", text), ("IFA_BROADCAST", everybody)]
    return _encoded(ifaddrmsg(), _RTM_NEWADDR, _NEW, fields, attributes)


def _attributes(**attributes: Any) -> list[tuple[str, Any]]:
    return [(f"IFLA_{name}", value) for name, value in attributes.items()]


def _kind(kind: str, data: Any = None) -> dict[str, Any]:
    more = [] if data is None else [("IFLA_INFO_DATA", data)]
    return {"attrs": [("IFLA_INFO_KIND", kind), *more]}


def _encoded(
    message: Any, kind: int, flags: int, fields: dict[str, int], attributes: list[tuple[str, Any]]
) -> bytes:
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attributes
    message["header"]["type"], message["header"]["flags"] = kind, flags
    message.encode()
    return bytes(message.data)
