"""Network namespaces: loopback up, and docker's two settings for a container's own stack."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

from pytest_sandbox.linux import syscall as sc

__all__ = ["bring_up_loopback", "make_network"]

_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x41
#: Any process may listen on any port, and send an ICMP echo (moby sets both in a container's own network namespace).
_SYSCTLS = {"ip_unprivileged_port_start": b"0", "ping_group_range": b"0 2147483647"}


def bring_up_loopback() -> None:
    """Bring up ``lo`` in the calling thread's network namespace (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP_RUNNING))


def make_network() -> None:
    """Give the calling thread a network namespace of its own with loopback up, and docker's settings where the kernel lets us."""
    sc.unshare(sc.CLONE_NEWNET)
    bring_up_loopback()
    for name, value in _SYSCTLS.items():
        try:
            fd = os.open(f"/proc/sys/net/ipv4/{name}", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:  # a kernel without IPv4 ping sockets, or a /proc/sys that an outer container made read-only
            continue
        try:
            os.write(fd, value)
        except OSError:  # a group range beyond what the user namespace maps
            pass
        finally:
            os.close(fd)
