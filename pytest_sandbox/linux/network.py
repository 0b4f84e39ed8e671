"""Network namespaces: loopback up, and docker's two settings for a container's own stack."""

from __future__ import annotations

import os
import socket
import struct

from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.program import Program

__all__ = ["add_network", "make_network"]

_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x41
#: Any process may listen on any port, and send an ICMP echo (moby sets both in a container's own network namespace).
_SYSCTLS = {b"ip_unprivileged_port_start": b"0", b"ping_group_range": b"0 2147483647"}


def add_network(program: Program, step: str) -> None:
    """Give the calling process a network namespace of its own with loopback up (netdevice(7)), and docker's settings where it may."""
    program.add(step, "unshare", sc.CLONE_NEWNET)
    any_socket = program.add(step, "socket", socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)
    program.add(step, "ioctl", any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP_RUNNING))
    program.close(step, any_socket)
    for name, value in _SYSCTLS.items():
        # A kernel without IPv4 ping sockets, a /proc/sys that an outer container made read-only, groups beyond what the user namespace maps.
        program.write(step, b"/proc/sys/net/ipv4/" + name, value, go_on=True)


def make_network(user_fd: int) -> int:
    """Return the descriptor of a new network namespace that belongs to a user namespace."""
    program = Program()
    program.add("make a network", "setns", user_fd, sc.CLONE_NEWUSER)
    add_network(program, "make a network")
    found = program.open("make a network", b"/proc/self/ns/net", os.O_RDONLY)
    pid, pidfd = program.spawn(sc.CLONE_FILES)
    os.close(pidfd)
    os.waitpid(pid, 0)
    failure = program.failure()
    if failure is not None:
        program.close_leaks()
        raise failure.error()
    return program[found]
