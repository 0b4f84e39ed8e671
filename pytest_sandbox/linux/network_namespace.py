"""Network namespaces with loopback only (network_namespaces(7)).

Creating and removing one takes the kernel as long as a quarter of all that a container needs, so
one that nobody has used serves the next container too: :meth:`NetworkNamespace.looks_new`.
"""

from __future__ import annotations

import os
import socket
import struct

from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.syscall_batch import Result, SyscallBatch

__all__ = ["NetworkNamespace", "add_network"]

_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x41
#: Any process may listen on any port and send an ICMP echo request, as in docker's containers.
_SYSCTLS = {b"ip_unprivileged_port_start": b"0", b"ping_group_range": b"0 2147483647"}
#: Files of proc_pid_net(5) that differ once something has been done in the namespace: devices and
#: their packets, the protocols' counters (a connection without a route is counted too), and flow
#: labels, which outlive their sockets.
_STATE = (b"dev", b"snmp", b"snmp6", b"ip6_flowlabel")
#: Its first line is the number of sockets of all families; the others count the whole machine's.
_SOCKETS = b"sockstat"
_MOST_STATE = 1 << 16
_STEP = "make a network"


def add_network(batch: SyscallBatch, step: str) -> None:
    """Append creating a network namespace with loopback up (netdevice(7)) and docker's sysctls."""
    batch.add(step, "unshare", sc.CLONE_NEWNET)
    any_socket = batch.add(
        step, "socket", socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0
    )
    batch.add(
        step, "ioctl", any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP_RUNNING)
    )
    batch.close(step, any_socket)
    for name, value in _SYSCTLS.items():
        # It fails without IPv4 ping sockets, with a read-only /proc/sys of an outer container, and
        # for GIDs that the user namespace does not map.
        batch.write(step, b"/proc/sys/net/ipv4/" + name, value, go_on=True)


class NetworkNamespace:
    """A new network namespace that the user namespace ``owner``, a descriptor, owns.

    With ``is_watched``, :meth:`looks_new` can be asked later. Raises OSError.
    """

    def __init__(self, owner: int, *, is_watched: bool) -> None:
        self.owner, self.is_watched = owner, is_watched
        self.fd = -1
        self._files: list[int] = []
        batch = SyscallBatch()
        batch.add(_STEP, "setns", owner, sc.CLONE_NEWUSER)
        add_network(batch, _STEP)
        namespace = batch.open(_STEP, b"/proc/self/ns/net", os.O_RDONLY)
        files = [_open(batch, name) for name in (_SOCKETS, *_STATE)] if is_watched else []
        batch.run_in_child(sc.CLONE_FILES)
        self.fd = batch[namespace]
        self._files = [batch[file] for file in files]
        self._at_first = self._state()

    def _state(self) -> list[bytes]:
        """Return what the files say; a file that this kernel does not have says nothing."""
        contents = [os.pread(fd, _MOST_STATE, 0) if fd >= 0 else b"" for fd in self._files]
        return [contents[0].partition(b"\n")[0], *contents[1:]] if contents else []

    def looks_new(self) -> bool:
        """Return whether the namespace is in the state in which it was created: it has no socket,
        no device but loopback, and no packet has been sent.

        Sysctls, addresses and routes are not compared: changing them takes CAP_NET_ADMIN or a
        writable /proc/sys, so the caller has to know that no process had these.
        """
        return bool(self._files) and min(self._files) >= 0 and self._state() == self._at_first

    def close(self) -> None:
        """Close the descriptors; a second call does nothing."""
        fds, self.fd, self._files = [self.fd, *self._files], -1, []
        for fd in fds:
            if fd >= 0:
                os.close(fd)


def _open(batch: SyscallBatch, name: bytes) -> Result:
    return batch.open(_STEP, b"/proc/self/net/" + name, os.O_RDONLY, go_on=True)
