"""Connect network namespaces by bridges (rtnetlink(7), veth(4), bridge(8))."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

from pytest_sandbox.linux import name_link, packet_socket, process
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.netlink_messages import (
    CHANGE,
    CREATE,
    NEW_ADDRESS,
    NEW_LINK,
    UP,
    attribute,
    kind_of_link,
    link,
    message,
    veth,
)
from pytest_sandbox.linux.syscall_batch import SyscallBatch

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Interface

    from pytest_sandbox.linux.syscall_batch import Result

__all__ = ["Bridge", "hardware_address"]

# <linux/rtnetlink.h>, <linux/netlink.h>, <linux/if_link.h>, <linux/if_addr.h>, <linux/if.h>
_RTM_DELLINK, _RTM_GETLINK = 17, 18
_NLMSG_ERROR = 2
_REQUEST = 0x1  # NLM_F_REQUEST
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MASTER = 1, 3, 10
_IFLA_GROUP, _IFLA_NET_NS_FD, _IFLA_GSO_MAX_SEGS = 27, 28, 40
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_IFLA_OPERSTATE, _IF_OPER_UP = 16, 6
_DEVICE = "eth0"  # as in docker's containers
# Interface indexes above those of devices that the kernel creates itself (sit0, tunl0, ...). Ports
# of the bridge have the following ones. The indexes of the two ends of a veth pair must differ, or
# the kernel delays the carrier event by a second (linkwatch_urgent_event()).
_BRIDGE = _INNER = 1000
_PORT_TIMEOUT = 5.0
# Indexes of the devices of a diversion: _DIVERSION plus eight times the number of the port (at most
# 24 bits), plus one of these. They are above those of all ports.
_DIVERSION = 1 << 28
_INNER_BRIDGE, _INNER_PORT, _INNER_END, _OUTER_PORT, _OUTER_END = range(5)


class Bridge:
    """A bridge in a network namespace without processes, which connects containers.

    The namespace ends when its descriptor is closed. ``builder_fd`` is the user namespace that owns
    it, or -1 for the caller's own. The methods are thread-safe. They raise OSError, with EOPNOTSUPP
    if the kernel does not support bridges.
    """

    def __init__(self, builder_fd: int) -> None:
        self._builder_fd = builder_fd
        self._lock = threading.Lock()
        self._fds: tuple[int, ...] = ()
        batch = self._batch("make the bridge")
        batch.add("make the bridge", "unshare", sc.CLONE_NEWNET)
        # Otherwise devices send IPv6 neighbour discovery packets by themselves.
        for which in (b"all", b"default"):
            batch.write(
                "make the bridge",
                b"/proc/sys/net/ipv6/conf/" + which + b"/disable_ipv6",
                b"1",
                go_on=True,
            )
        self._fds = self._namespace, self._socket = _open_namespace(batch, "make the bridge")
        self._request(_link(_BRIDGE, _name("bridge"), kind_of_link(b"bridge"), up=True))

    def _batch(self, step: str) -> SyscallBatch:
        batch = SyscallBatch()
        if self._builder_fd >= 0:
            batch.add(step, "setns", self._builder_fd, sc.CLONE_NEWUSER)
        return batch

    def plug(self, number: int, pidfd: int, address: IPv4Interface) -> list[int]:
        """Create eth0 in the network namespace of a process, and connect it to the bridge; return
        descriptors of the sockets of its way to the name server (name_link.py).

        ``number`` is that of the port, one for each address. The port of a container that has just
        ended may still exist.
        """
        batch = self._batch("plug in")
        batch.add("plug in", "setns", pidfd, sc.CLONE_NEWNET)
        batch.write("plug in", b"/proc/sys/net/ipv6/conf/default/disable_ipv6", b"1", go_on=True)
        sockets = _add_name_link(batch, "plug in")
        namespace, inner = _open_namespace(batch, "plug in")
        link = [batch[one] for one in sockets]
        try:
            self._create_pair(_BRIDGE + number, namespace, address)
            up = _link(_INNER, new=False, up=True)
            _ask(inner, _address(_INNER, address), up, *name_link.add_route())
            name_link.bind(link[0])
            self._wait_for_port(_BRIDGE + number)
        except BaseException:
            for fd in link:
                os.close(fd)
            raise
        finally:
            os.close(namespace)
            os.close(inner)
        return link

    def open_name_link(self, pidfd: int) -> list[int]:
        """Return other sockets of the way to the name server from a process's namespace."""
        batch = self._batch("open the way to the name server")
        batch.add("enter the network", "setns", pidfd, sc.CLONE_NEWNET)
        sockets = _add_name_link(batch, "open the way to the name server")
        batch.run_in_child(sc.CLONE_FILES)
        link = [batch[one] for one in sockets]
        name_link.bind(link[0])
        return link

    def close_name_link(self, pidfd: int) -> None:
        """Remove the route to the name server from the network namespace of a process."""
        batch = self._batch("close the way to the name server")
        batch.add("enter the network", "setns", pidfd, sc.CLONE_NEWNET)
        namespace, inner = _open_namespace(batch, "close the way to the name server")
        try:
            _ask(inner, name_link.remove_route())
        finally:
            os.close(namespace)
            os.close(inner)

    def _create_pair(self, index: int, namespace: int, address: IPv4Interface) -> None:
        """Create a veth pair: a port of the bridge, and a device in ``namespace``."""
        hardware = attribute(_IFLA_ADDRESS, hardware_address(address.ip))
        pair = veth(link(_INNER, 0), _name(_DEVICE), hardware, _number(_IFLA_NET_NS_FD, namespace))
        master = _number(_IFLA_MASTER, _BRIDGE)
        request = _link(index, _name(f"port{index}"), master, pair, up=True)
        try:
            self._request(request)
        except FileExistsError:
            self._remove(index)
            self._request(request)

    def unplug(self, number: int) -> None:
        """Remove eth0 of a container, with its port."""
        self._remove(_BRIDGE + number)

    def _remove(self, index: int) -> None:
        self._delete(_link(index, kind=_RTM_DELLINK, new=False))

    def _delete(self, request: bytes) -> None:
        try:
            self._request(request)
        except OSError as error:
            if error.errno != errno.ENODEV:  # the kernel has removed it already
                raise

    def _wait_for_port(self, index: int) -> None:
        """Wait until the bridge forwards packets of a port (networking/operstates.rst)."""
        request = _link(index, kind=_RTM_GETLINK, new=False, flags=_REQUEST)
        deadline = time.monotonic() + _PORT_TIMEOUT
        while True:
            if _operating_state(*self._request(request)) == _IF_OPER_UP:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(
                    errno.ETIMEDOUT, "the port of the bridge does not become operational"
                )
            time.sleep(0.001)  # there is no descriptor to poll for it

    def divert(self, number: int) -> tuple[int, int]:
        """Create the devices of a diversion of a port, which is not used until :meth:`switch`.

        A second bridge takes the port, and two veth pairs end in the packet sockets that are
        returned: one for what the container sends and receives, one for the first bridge. Frames
        of these sockets begin with struct virtio_net_hdr. Each frame has at most one segment
        (gso_max_segs), so that a relay drops single packets, as a real network does.
        """
        base = _DIVERSION + 8 * number
        bridge, second = base + _INNER_BRIDGE, kind_of_link(b"bridge")
        self._request(
            _link(bridge, _name(f"divert{number}"), _number(_IFLA_GROUP, number), second, up=True),
            _diversion_pair(number, _INNER_PORT, _INNER_END, f"in{number}", bridge),
            _diversion_pair(number, _OUTER_PORT, _OUTER_END, f"out{number}", _BRIDGE),
            _link(base + _INNER_END, new=False, up=True),
            _link(base + _OUTER_END, new=False, up=True),
        )
        for port in (_INNER_PORT, _OUTER_PORT):
            self._wait_for_port(base + port)
        inner = self.open_packets(f"in{number}-end")
        try:
            return inner, self.open_packets(f"out{number}-end")
        except BaseException:
            os.close(inner)
            raise

    def switch(self, number: int, *, diverted: bool) -> None:
        """Connect the port of a container to its diversion, or to the bridge again.

        Raises OSError with ENODEV if the container has ended.
        """
        bridge = _DIVERSION + 8 * number + _INNER_BRIDGE if diverted else _BRIDGE
        self._request(_link(_BRIDGE + number, _number(_IFLA_MASTER, bridge), new=False))

    def remove_diversion(self, number: int) -> None:
        """Remove the devices of a diversion, all at once: each request takes as long as all
        processors need to stop using a device (synchronize_net()).
        """
        self._delete(_link(0, _number(_IFLA_GROUP, number), kind=_RTM_DELLINK, new=False))

    def open_packets(self, device: str = "") -> int:
        """Return a descriptor of a non-blocking packet socket (packet(7)) that receives the frames
        of a device with struct virtio_net_hdr, or those of all devices without.
        """
        step = "open a packet socket"
        batch = self._batch(step)
        with self._lock:
            if not self._fds:
                raise OSError(errno.EBADF, "the network has ended")
            batch.add(step, "setns", self._namespace, sc.CLONE_NEWNET)
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            made = batch.add(step, "socket", socket.AF_PACKET, kind, packet_socket.protocol(device))
            batch.run_in_child(sc.CLONE_FILES)
        one = socket.socket(fileno=batch[made])
        try:
            packet_socket.configure(one, device)
        except BaseException:
            one.close()
            raise
        return one.detach()

    def _request(self, *requests: bytes) -> list[bytes]:
        with self._lock:
            if not self._fds:
                raise OSError(errno.EBADF, "the network has ended")
            return _ask(self._socket, *requests)

    def close(self) -> None:
        """Close the namespace, which ends with its bridge; closing it again does nothing."""
        with self._lock:
            self.abandon()

    def abandon(self) -> None:
        """Close it in a forked process, where another thread may have held the lock."""
        fds, self._fds = self._fds, ()
        for fd in fds:
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_fds", ()):
            self.abandon()


def hardware_address(address: IPv4Address) -> bytes:
    """Return the MAC address of the container with this address, derived from it as in docker, so
    that neighbours' ARP caches stay valid when another container gets the address.
    """
    return b"\x02\x42" + address.packed


def _diversion_pair(number: int, port: int, end: int, name: str, bridge: int) -> bytes:
    """Return a request for a port of a bridge, and for the other end, which a relay reads."""
    base = _DIVERSION + 8 * number
    return _link(
        base + port,
        _name(name),
        _number(_IFLA_GROUP, number),
        _number(_IFLA_MASTER, bridge),
        _number(_IFLA_GSO_MAX_SEGS, 1),
        veth(link(base + end, 0), _name(f"{name}-end")),
        up=True,
    )


def _open_namespace(batch: SyscallBatch, step: str) -> tuple[int, int]:
    """Return descriptors of the network namespace that a batch joins, and of a socket in it."""
    namespace = batch.open(step, b"/proc/self/ns/net", os.O_RDONLY)
    netlink = batch.add(
        step,
        "socket",
        socket.AF_NETLINK,
        socket.SOCK_RAW | socket.SOCK_CLOEXEC,
        socket.NETLINK_ROUTE,
    )
    batch.run_in_child(sc.CLONE_FILES)
    return batch[namespace], batch[netlink]


def _add_name_link(batch: SyscallBatch, step: str) -> list[Result]:
    return [
        batch.open_socket(step, *arguments)
        for arguments in (name_link.PACKET_SOCKET, name_link.RAW_SOCKET)
    ]


def _ask(fd: int, *requests: bytes) -> list[bytes]:
    """Send requests and return their responses; raises OSError for the first error.

    The kernel handles them during write(2), so that the responses are available at once.
    """
    while process.is_readable(fd):  # the response to a call that was interrupted
        os.read(fd, 1 << 16)
    os.write(fd, b"".join(requests))
    responses = [os.read(fd, 1 << 16) for _ in requests]
    for response in responses:
        # struct nlmsghdr, struct nlmsgerr
        _length, kind, _flags, _sequence, _port, code = struct.unpack_from("=IHHIIi", response)
        if kind == _NLMSG_ERROR and code:
            raise OSError(-code, os.strerror(-code))
    return responses


def _operating_state(response: bytes) -> int:
    """Return IFLA_OPERSTATE of the response to RTM_GETLINK."""
    at = 32  # after struct nlmsghdr and struct ifinfomsg
    while at + 4 < len(response):
        length, kind = struct.unpack_from("=HH", response, at)
        if kind == _IFLA_OPERSTATE:
            return response[at + 4]
        at += max(4, (length + 3) & ~3)
    return 0


def _link(
    index: int,
    *attributes: bytes,
    kind: int = NEW_LINK,
    new: bool = True,
    flags: int = 0,
    up: bool = False,
) -> bytes:
    """Return a request about the device ``index``."""
    header = link(index, UP if up else 0)
    return message(kind, flags or (CREATE if new else CHANGE), header, *attributes)


def _address(index: int, address: IPv4Interface) -> bytes:
    """Return a request that assigns an address to the device ``index`` (struct ifaddrmsg)."""
    header = struct.pack("=BBBBi", socket.AF_INET, address.network.prefixlen, 0, 0, index)
    own = address.ip.packed
    broadcast = attribute(_IFA_BROADCAST, address.network.broadcast_address.packed)
    ends = attribute(_IFA_ADDRESS, own), attribute(_IFA_LOCAL, own)
    return message(NEW_ADDRESS, CREATE, header, *ends, broadcast)


def _name(name: str) -> bytes:
    return attribute(_IFLA_IFNAME, name.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))
