"""A network of containers: docker's user-defined bridge network, for tests."""

from __future__ import annotations

import errno
import itertools
import os
import re
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, Self

from pytest_sandbox.client import cleanup, session
from pytest_sandbox.container.hosts_file import Hosts
from pytest_sandbox.errors import (
    ContainerStopped,
    SandboxError,
    SettingsError,
    SetupError,
    UnsupportedError,
)
from pytest_sandbox.linux.rtnetlink import Bridge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Network

__all__ = ["Endpoint", "Network"]

__tracebackhide__ = (
    True  # pytest shows the line of the test that asked, not ours; --full-trace shows all
)

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_NAME_FORM: Final = 'letters, digits, "_", "." and "-", with a letter or a digit first'
_SUBNET: Final = "172.30.0.0/24"
_SUBNET_FORM: Final = (
    f'an IPv4 network of 4 addresses or more that is not loopback or multicast, such as "{_SUBNET}"'
)
# docker gives the first address to the bridge, which has none here; so addresses are as there
_FIRST: Final = 2
_count = itertools.count(1)


class Endpoint(NamedTuple):
    """A container's place on a network: the number of its address in the subnet, the address, and
    its names.
    """

    network: Network
    number: int
    address: str
    names: tuple[str, ...]


class Network:
    """A network of containers' own, as ``docker network create --internal``: ``with Network() as
    net, Container(network=net, hostname="db") as db: ...``.

    Its containers reach each other, by host name, by id and by address, on every port, and nothing
    else: not the host, no other network, not the internet. ``name`` is for messages. ``subnet`` is
    IPv4; every network may have the same, for none sees another. ``internal=False``, a way out, is
    not to be had.

    It starts with its first container, or by :meth:`start`, and belongs to the process that started
    it. Any thread may use it. Raises :class:`SettingsError`, and at the start
    :class:`UnsupportedError` where the kernel has no bridges.
    """

    def __init__(
        self, name: str | None = None, *, subnet: str | IPv4Network = _SUBNET, internal: bool = True
    ) -> None:
        if name is not None and not _is_name(name):
            raise SettingsError("name", name, _NAME_FORM)
        if not internal:
            remedy = (
                'A Network connects its containers with each other alone; network="host" '
                "gives a container the host's network."
            )
            raise UnsupportedError(f"internal={internal!r}", remedy)
        self.name = name or f"network-{next(_count)}"
        self._subnet = _read_subnet(subnet)
        self._state = "created"
        self._changing = threading.RLock()
        self._endpoints: dict[int, Endpoint] = {}
        self._last = _FIRST - 1

    @property
    def subnet(self) -> str:
        """The addresses that its containers have, such as "172.30.0.0/24"."""
        return str(self._subnet)

    @property
    def addresses(self) -> dict[str, str]:
        """The host names of those who are on it, with their addresses, in the order of coming."""
        with self._changing:
            return {endpoint.names[0]: endpoint.address for endpoint in self._endpoints.values()}

    def __repr__(self) -> str:
        return f"<Network {self.name} {self.subnet} {self._state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"the network {self.name} cannot be pickled: it belongs to its process. Make a "
            "Network where it is used."
        )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_exception: object) -> None:
        try:
            self.close()
        except SandboxError:
            if (
                kind is None
            ):  # else what went wrong in the block is told, and not what it has left open
                raise

    def start(self) -> Self:
        """Start the network, unless it runs; returns it. One that was closed does not start
        again.
        """
        with self._changing:
            if self._state == "created":
                self._begin()
            if self._state == "running" and (
                self._launcher.pid != os.getpid() or self._launcher is not session.current()
            ):
                # this is a fork, or the launcher has died, and every container of the network with
                # it
                self.abandon()
            if self._state != "running":
                raise SandboxError(f"the network {self.name} is {self._state}. Make a new one.")
        return self

    def _begin(self) -> None:
        launcher = session.current()
        directory = os.path.join(cleanup.session_directory(launcher.name), "networks")
        with _explained("make a network"):
            self._bridge = Bridge(launcher.builder_fd)
            with suppress(FileExistsError):
                os.mkdir(
                    directory, 0o700
                )  # never the session's own: that is gone with its launcher
            self._hosts = Hosts(os.path.join(directory, f"hosts-{next(_count)}"))
        self._launcher = launcher
        self._state = "running"
        launcher.networks.add(self)

    def close(self) -> None:
        """End the network.

        Raises :class:`SandboxError` where containers are on it still; closing twice is fine.
        """
        with self._changing:
            if self._state == "created":
                self._state = "closed"
            elif self._launcher.pid != os.getpid():
                self.abandon()
            else:
                self._end()

    def _end(self) -> None:
        if self._state == "running":
            if self._endpoints:
                on_it = ", ".join(f"{name} ({address})" for name, address in self.addresses.items())
                raise SandboxError(
                    f"the network {self.name} has active endpoints: {on_it}. Close these "
                    "containers first."
                )
            self._state = "closed"
            self._launcher.networks.discard(self)
        self._bridge.close()
        with suppress(FileNotFoundError):  # the launcher has died, and has tidied up
            os.unlink(self._hosts.path)

    def abandon(self) -> None:
        """Have no more containers where the launcher has died; in a fork, let go of the network
        without a word.
        """
        if self._state == "running":
            self._state = "gone with its launcher"
            if self._launcher.pid != os.getpid():
                self._state = "another process's"
                self._bridge.abandon()

    # -- what containers ask

    def hosts(self) -> tuple[str, str, bool]:
        """Return the volume that shows a container the names of all; starts the network."""
        return self.start()._hosts.path, "/etc/hosts", True  # noqa: SLF001 - its own

    def attach(self, identity: str, hostname: str, pidfd: int) -> Endpoint:
        """Connect the container whose init is ``pidfd``.

        Raises :class:`SettingsError` where somebody on the network has this host name,
        :class:`SetupError` where no address is left.
        """
        names = tuple(dict.fromkeys((hostname, identity)))
        with self._changing:
            self.start()
            self._check_name(hostname)
            self._last = number = self._free_number()
            self._endpoints[number] = endpoint = Endpoint(
                self, number, str(self._subnet[number]), names
            )
        try:
            self.plug(endpoint, pidfd)
        except BaseException:
            self.detach(endpoint)
            raise
        return endpoint

    def plug(self, endpoint: Endpoint, pidfd: int) -> None:
        """Connect a network namespace, the first or a later one of a container, by the address that
        it has; then its names are found.
        """
        from ipaddress import IPv4Interface

        with _explained(f"connect to the network {self.name}"):
            self._bridge.plug(
                endpoint.number, pidfd, IPv4Interface((endpoint.address, self._subnet.prefixlen))
            )
            with self._changing:
                self._hosts.add(endpoint.address, *endpoint.names)

    def detach(self, endpoint: Endpoint) -> None:
        """Forget a container that has ended; the kernel takes its device away."""
        with self._changing:
            if self._state == "running" and endpoint.number in self._endpoints:
                del self._endpoints[endpoint.number]
                with suppress(FileNotFoundError):
                    self._hosts.remove(endpoint.address)

    def _check_name(self, hostname: str) -> None:
        """Refuse a name that leads elsewhere already; upper and lower case are the same in
        names.
        """
        taken = {
            name.lower(): endpoint.address
            for endpoint in self._endpoints.values()
            for name in endpoint.names
        }
        address = {"localhost": "127.0.0.1", **taken}.get(hostname.lower())
        if address:
            raise SettingsError(
                "hostname",
                hostname,
                f"a name that nobody on the network {self.name} has; {address} has it",
            )

    def _free_number(self) -> int:
        """Return the number of an address: the next after the last, so that one that has just
        become free rests.
        """
        count = self._subnet.num_addresses - 1 - _FIRST
        for step in range(count):
            number = _FIRST + (self._last + 1 - _FIRST + step) % count
            if number not in self._endpoints:
                return number
        remedy = "Close a container, or make the network with a larger subnet."
        raise SetupError(
            f"connect to the network {self.name}",
            f"all {count} addresses of {self.subnet} are taken",
            remedy,
        )


@contextmanager
def _explained(step: str) -> Iterator[None]:
    """Turn what the kernel refuses into an error with a remedy."""
    try:
        yield
    except ProcessLookupError as error:
        raise ContainerStopped.ended() from error
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            from pytest_sandbox import host

            host.require("bridge", "a Network")
        raise SetupError(step, str(error.strerror)) from error


def _is_name(value: object) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _read_subnet(value: Any) -> IPv4Network:
    from ipaddress import IPv4Network

    try:
        found = IPv4Network(value) if isinstance(value, str | IPv4Network) else None
    except ValueError:
        found = None
    if found is None or found.prefixlen > 30 or found.prefixlen < 8 or _is_special(found):
        raise SettingsError("subnet", value, _SUBNET_FORM)
    return found


def _is_special(network: IPv4Network) -> bool:
    """Whether its addresses are not to be given to devices: "this network", loopback, multicast,
    reserved (RFC 6890).
    """
    return (
        network.network_address.packed[0] == 0
        or network.is_loopback
        or network.is_multicast
        or network.is_reserved
    )
