"""The published ports of a container: sockets of the host, given to a relay.

The sockets are bound here, so that an error names the setting. Each container has a loopback
address of its own, so that containers of parallel tests publish the same port. The address is
reserved by a Unix domain socket in the abstract namespace (unix(7)): such a name belongs to one
socket of the network namespace, as loopback addresses do, and is gone with the last descriptor,
which the relay has.
"""

from __future__ import annotations

import errno
import secrets
import socket
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from pytest_sandbox.container.relay import Published
from pytest_sandbox.errors import SettingsError, SetupError
from pytest_sandbox.linux.signals import Deferred

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.container.handle import Handle
    from pytest_sandbox.settings.port_mapping import PortMapping

__all__ = ["publish", "start_relay"]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all

#: The addresses of containers, 127.64.0.0/10, without the first and the last of it.
_FIRST_ADDRESS = int(IPv4Address("127.64.0.1"))
_ADDRESSES = (1 << 22) - 2
_ATTEMPTS = 1000
_LOOPBACKS = ("127.0.0.1", "::1")
_BACKLOG = 128


def start_relay(handle: Handle) -> Published:
    """Start the relay of a container; :func:`publish` uses it.

    Raises :class:`SetupError`.
    """
    _answer, fds = handle.launcher.request({"op": "relay", "kind": "ports"})
    with fds, Deferred():
        handle.published = Published(fds.take())
    return handle.published


def publish(handle: Handle) -> None:
    """Publish the ports of the container's settings; for a new init, go on with the same sockets.

    Raises :class:`SettingsError` if a port of the host is in use, and :class:`SetupError`.
    """
    published = handle.published
    if published is not None and published.address:
        published.enter(handle.pidfd)
        return
    if not handle.settings.publish:
        return
    with ExitStack() as opened:
        address, reservation = _reserve_address(opened)
        bound = _bind_all(opened, handle.settings.publish, address)
        published = published or start_relay(handle)
        sockets = [(mapping.port, one) for mapping, bound_to in bound for one in bound_to]
        message = {
            "op": "publish",
            "ports": [port for port, _one in sockets],
            "addresses": _inner_addresses(handle),
        }
        kept = [*(one.fileno() for _port, one in sockets), reservation.fileno()]
        published.ask(message, [handle.pidfd, *kept])
        published.ports = {mapping.key: _port_of(sockets[0]) for mapping, sockets in bound}
        published.address = address


def _inner_addresses(handle: Handle) -> list[str]:
    """Return where a service inside may listen, the most likely first."""
    return [*_LOOPBACKS, *([handle.endpoint.address] if handle.endpoint else [])]


def _reserve_address(opened: ExitStack) -> tuple[str, socket.socket]:
    """Return a loopback address that no other container has, and the socket that reserves it.

    Random addresses, so that an address is not used again soon after its container's end.
    """
    reservation = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    for _ in range(_ATTEMPTS):
        address = str(IPv4Address(_FIRST_ADDRESS + secrets.randbelow(_ADDRESSES)))
        with suppress(OSError):
            reservation.bind(f"\0pytest-sandbox {address}")
            return address, reservation
    raise SetupError("publish ports", "no address of 127.64.0.0/10 is free")


def _bind_all(
    opened: ExitStack, mappings: Sequence[PortMapping], own: str
) -> list[tuple[PortMapping, list[socket.socket]]]:
    """Return the sockets of each mapping; the first is on the container's own address."""
    found = []
    for mapping in mappings:
        port = mapping.port if mapping.host_port is None else mapping.host_port
        hosts = [mapping.host] if mapping.host else list(_LOOPBACKS)
        bound = []
        for host in hosts if mapping.host_port is not None else []:
            one = _bind(opened, mapping, host, port)
            if one is not None:
                bound.append(one)
                port = _port_of(one)  # the kernel's choice for 0
        one = _bind(opened, mapping, own, port)
        assert one is not None
        found.append((mapping, [one, *bound]))
    return found


def _bind(opened: ExitStack, mapping: PortMapping, host: str, port: int) -> socket.socket | None:
    """Return a socket that is bound to an address of the host; None without IPv6 for a mapping that
    does not ask for it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind = socket.SOCK_DGRAM if mapping.protocol == "udp" else socket.SOCK_STREAM
    try:
        one = opened.enter_context(socket.socket(family, kind))
        if kind == socket.SOCK_STREAM:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind((host, port))
        if kind == socket.SOCK_STREAM:
            one.listen(_BACKLOG)
    except OSError as error:
        without = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}
        if host == "::1" and not mapping.host and error.errno in without:
            return None
        raise SettingsError("publish", str(mapping), _accepted(error, host, port)) from error
    return one


def _accepted(error: OSError, host: str, port: int) -> str:
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return (
            f"a port of the host that is free ({place} is in use); with the port inside alone, "
            "such as '80', each container has a loopback address of its own"
        )
    if error.errno == errno.EACCES:
        return f"a port of the host that this user may open ({place}: {error.strerror})"
    return f"an address of this host ({place}: {error.strerror})"


def _port_of(one: socket.socket) -> int:
    return int(one.getsockname()[1])
