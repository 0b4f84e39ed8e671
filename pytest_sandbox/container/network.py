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

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_NAME_FORM: Final = 'letters, digits, "_", "." and "-", with a letter or a digit first'
_SUBNET: Final = "172.30.0.0/24"
_SUBNET_FORM: Final = (
    f'an IPv4 network of 4 addresses or more that is not loopback or multicast, such as "{_SUBNET}"'
)
# As with docker, which gives the first address to the bridge; here the bridge has none.
_FIRST: Final = 2
_count = itertools.count(1)


class Endpoint(NamedTuple):
    """The connection of a container to a network: the number of its address in the subnet, the
    address, and its names.
    """

    network: Network
    number: int
    address: str
    names: tuple[str, ...]


class Network:
    """A network for containers, as ``docker network create --internal``: ``with Network() as net,
    Container(network=net, hostname="db") as db: ...``.

    Its containers reach each other by host name, by id and by address, on every port. They reach
    nothing else: not the host, no other network, not the internet. ``internal=False`` is not
    supported.

    ``name`` appears in messages (default: ``network-N``). ``subnet`` is IPv4 (default:
    172.30.0.0/24); several networks may have the same one, since none reaches another.

    It starts with its first container, or by :meth:`start`, and belongs to the process that started
    it. Any thread may use it. Raises :class:`SettingsError` for an invalid name or subnet, and
    :class:`UnsupportedError` for ``internal=False``.
    """

    def __init__(
        self, name: str | None = None, *, subnet: str | IPv4Network = _SUBNET, internal: bool = True
    ) -> None:
        if name is not None and not _is_name(name):
            raise SettingsError("name", name, _NAME_FORM)
        if not internal:
            remedy = (
                'A Network connects containers with each other only; network="host" gives a '
                "container the host's network."
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
        """The subnet of the containers' addresses, such as "172.30.0.0/24"."""
        return str(self._subnet)

    @property
    def addresses(self) -> dict[str, str]:
        """The address of each container on it, by host name, in the order of their start."""
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
            if kind is None:  # else the exception of the block is the one to report
                raise

    def start(self) -> Self:
        """Start the network unless it runs, and return it.

        Raises :class:`SandboxError` if it was closed, :class:`UnsupportedError` if the kernel has
        no bridges, and :class:`SetupError`.
        """
        with self._changing:
            if self._state == "created":
                self._begin()
            if self._state == "running" and (
                self._launcher.pid != os.getpid() or self._launcher is not session.current()
            ):
                # In a fork; or the launcher has died, and with it all containers of the network.
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
                # Not os.makedirs: the directory of a session whose launcher has died stays removed.
                os.mkdir(directory, 0o700)
            self._hosts = Hosts(os.path.join(directory, f"hosts-{next(_count)}"))
        self._launcher = launcher
        self._state = "running"
        launcher.networks.add(self)

    def close(self) -> None:
        """End the network; a second call does nothing.

        Raises :class:`SandboxError` while containers are on it.
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
        with suppress(FileNotFoundError):  # the launcher has died, and its directory was removed
            os.unlink(self._hosts.path)

    def abandon(self) -> None:
        """Accept no more containers, since the launcher has died; in a fork, also close the
        descriptors.
        """
        if self._state == "running":
            self._state = "gone with its launcher"
            if self._launcher.pid != os.getpid():
                self._state = "another process's"
                self._bridge.abandon()

    # -- for containers

    def hosts(self) -> tuple[str, str, bool]:
        """Return the volume that mounts the hosts file at /etc/hosts; start the network."""
        return self.start()._hosts.path, "/etc/hosts", True  # noqa: SLF001 - its own

    def attach(self, identity: str, hostname: str, pidfd: int) -> Endpoint:
        """Give a container an address, and connect it; ``pidfd`` refers to its init.

        Raises :class:`SettingsError` if a container on the network has this host name, and
        :class:`SetupError` if all addresses are in use.
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
        """Connect the network namespace of a container's init, the first or a later one, with the
        endpoint's address; then add its names to the hosts file.
        """
        from ipaddress import IPv4Interface

        with _explained(f"connect to the network {self.name}"):
            self._bridge.plug(
                endpoint.number, pidfd, IPv4Interface((endpoint.address, self._subnet.prefixlen))
            )
            with self._changing:
                self._hosts.add(endpoint.address, *endpoint.names)

    def detach(self, endpoint: Endpoint) -> None:
        """Free the address and the names of a container that has ended; the kernel removes its
        device.
        """
        with self._changing:
            if self._state == "running" and endpoint.number in self._endpoints:
                del self._endpoints[endpoint.number]
                with suppress(FileNotFoundError):
                    self._hosts.remove(endpoint.address)

    def _check_name(self, hostname: str) -> None:
        """Raise :class:`SettingsError` for a name that has an address; case does not matter."""
        used = {
            name.lower(): endpoint.address
            for endpoint in self._endpoints.values()
            for name in endpoint.names
        }
        address = {"localhost": "127.0.0.1", **used}.get(hostname.lower())
        if address:
            raise SettingsError(
                "hostname",
                hostname,
                f"a name that is not used on the network {self.name}; {address} has it",
            )

    def _free_number(self) -> int:
        """Return the number of the next unused address after the last one given.

        An address that has just become free is used last: the kernel removes its device only some
        20 ms after the container's end.
        """
        count = self._subnet.num_addresses - 1 - _FIRST
        for step in range(count):
            number = _FIRST + (self._last + 1 - _FIRST + step) % count
            if number not in self._endpoints:
                return number
        remedy = "Close a container, or use a larger subnet."
        raise SetupError(
            f"connect to the network {self.name}",
            f"all {count} addresses of {self.subnet} are in use",
            remedy,
        )


@contextmanager
def _explained(step: str) -> Iterator[None]:
    """Convert an OSError into an error with a remedy."""
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
    """Return whether a device must not have these addresses: "this network", loopback, multicast,
    reserved (RFC 6890).
    """
    return (
        network.network_address.packed[0] == 0
        or network.is_loopback
        or network.is_multicast
        or network.is_reserved
    )
