"""A network of containers: docker's user-defined bridge network, for tests."""

from __future__ import annotations

import itertools
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, Protocol, Self

from pytest_sandbox.client import cleanup, session
from pytest_sandbox.container import network_capture
from pytest_sandbox.container.fault_values import FaultCounters, FaultValues
from pytest_sandbox.container.hosts_file import Hosts
from pytest_sandbox.container.name_server import Entry, NameServer
from pytest_sandbox.container.network_errors import explained
from pytest_sandbox.container.network_values import (
    NAME_FORM,
    SUBNET,
    check_unused,
    is_name,
    read_aliases,
    read_fault,
    read_subnet,
)
from pytest_sandbox.errors import (
    SandboxError,
    SettingsError,
    SetupError,
    UnsupportedError,
)
from pytest_sandbox.linux.rtnetlink import Bridge
from pytest_sandbox.runtime.protocol import close_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from ipaddress import IPv4Network
    from typing import Unpack

    from pytest_sandbox.container.fault_values import FaultKeywords
    from pytest_sandbox.container.network_faults import Fault, NetworkFaults, Place

__all__ = ["Endpoint", "Network"]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all

# As with docker, which gives the first address to the bridge; here the bridge has none.
_FIRST: Final = 2
_count = itertools.count(1)


class Endpoint(NamedTuple):
    """A container on a network: the number of its address in the subnet, the address, its names."""

    network: Network
    number: int
    address: str
    names: tuple[str, ...]


class Connectable(Protocol):
    """A :class:`~pytest_sandbox.Container`, which this file cannot import."""

    handle: Any


class Network:
    """A network for containers, as ``docker network create --internal``: ``with Network() as net,
    Container(network=net, hostname="db") as db: ...``.

    Its containers reach each other by host name, by alias, by id and by address, on every port.
    They reach nothing else: not the host, no other network, not the internet. ``internal=False`` is
    not supported. A name server at 127.0.0.11 knows the same names as /etc/hosts.

    ``name`` appears in messages (default: ``network-N``). ``subnet`` is IPv4 (default:
    172.30.0.0/24); several networks may have the same one, since none reaches another.

    ``faults`` are those from the start on, as keywords of :meth:`fault` (without ``reset``) by the
    host name of a container, or by a pair of names: ``faults={"db": {"latency": "50ms"}}``.

    It starts with its first container, or by :meth:`start`, and belongs to the process that started
    it. Any thread may use it. Raises :class:`SettingsError` for an invalid name, subnet or fault,
    and :class:`UnsupportedError` for ``internal=False``.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        subnet: str | IPv4Network = SUBNET,
        internal: bool = True,
        faults: Mapping[str | tuple[str, str], FaultKeywords] | None = None,
    ) -> None:
        if name is not None and not is_name(name):
            raise SettingsError("name", name, NAME_FORM)
        if not internal:
            remedy = (
                'A Network connects containers with each other only; network="host" gives a '
                "container the host's network."
            )
            raise UnsupportedError(f"internal={internal!r}", remedy)
        self.name = name or f"network-{next(_count)}"
        self._subnet = read_subnet(subnet)
        self._state = "created"
        self._changing = threading.RLock()
        self._endpoints: dict[int, Endpoint] = {}
        self._last = _FIRST - 1
        #: Descriptors of containers' inits, which their handles own.
        self._pidfds: dict[int, int] = {}
        self._first_faults = [read_fault(*one) for one in (faults or {}).items()]
        self._faults: NetworkFaults | None = None
        self._capture: network_capture.NetworkCapture | None = None

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
        with explained("make a network"):
            self._bridge = Bridge(launcher.builder_fd)
            with suppress(FileExistsError):
                # Not os.makedirs: the directory of a session whose launcher has died stays removed.
                os.mkdir(directory, 0o700)
            self._hosts = Hosts(os.path.join(directory, f"hosts-{next(_count)}"))
            self._name_server = NameServer(launcher, self._bridge)
            if network_capture.is_enabled():
                self._capture = network_capture.NetworkCapture(self.name, self._bridge, launcher)
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
        for relay in self._relays():
            relay.close()
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
                for relay in self._relays():
                    relay.abandon()

    def _relays(self) -> list[NetworkFaults | network_capture.NetworkCapture | NameServer]:
        return [one for one in (self._faults, self._capture, self._name_server) if one is not None]

    # -- containers that run

    def connect(self, container: Connectable, /, *, aliases: Iterable[str] = ()) -> None:
        """Connect a container that runs and has no network.

        The containers on the network find it by its names, and by ``aliases``. It finds them by the
        name server; its own ``/etc/hosts`` stays as it was.

        Raises :class:`SettingsError` for a container with a network and for an invalid alias,
        :class:`ContainerStopped`, and what starting a container on the network raises.
        """
        more = read_aliases(aliases)
        handle = container.handle.running()
        if handle.endpoint is not None or handle.settings.network == "host":
            on_it = "host" if handle.endpoint is None else handle.endpoint.network.name
            accepted = f"one without a network; {handle.hostname} is on {on_it}: disconnect it"
            raise SettingsError("container", container, accepted)
        names = (*(handle.settings.names or (handle.id,)), *more)
        handle.endpoint = self.attach(handle.id, names, handle.pidfd)

    def disconnect(self, container: Connectable, /) -> None:
        """Disconnect a container, which keeps running: its device, its address and its names are
        removed.

        Raises :class:`SettingsError` for a container that is not on the network.
        """
        endpoint = container.handle.endpoint
        if endpoint is None or endpoint.network is not self:
            raise SettingsError("container", container, self._known_containers())
        self.unplug(endpoint)
        self.detach(endpoint)
        container.handle.endpoint = None
        container.handle.is_disconnected = True

    # -- faults

    def fault(
        self,
        name: str | Connectable,
        peer: str | Connectable | None = None,
        /,
        **keywords: Unpack[FaultKeywords],
    ) -> Fault:
        """Make the network worse for a container, or for its traffic with ``peer``, until the end
        of the ``with`` block: ``with net.fault("db", latency="50ms"): ...``.

        Each packet to and from it is delayed by ``latency`` plus or minus a random part of
        ``jitter``, is lost, sent twice (``duplicate``) or sent before earlier ones (``reorder``)
        with these probabilities, and each direction has at most ``rate``. ``reset=True`` resets the
        TCP connections that are open now. With the same ``seed``, the same packets are affected.
        Faults add up.

        Raises :class:`SettingsError` for an invalid value and for a name that no container has,
        :class:`UnsupportedError` and :class:`SetupError`.
        """
        values = FaultValues.read(keywords)
        return self._start_fault((name,) if peer is None else (name, peer), values)

    def cut(self, one: str | Connectable, other: str | Connectable, /) -> Fault:
        """Drop all packets between two containers, until the end of the ``with`` block.

        Raises as :meth:`fault`.
        """
        return self._start_fault((one, other), FaultValues(cut=True))

    def heal(self) -> None:
        """End all faults."""
        with self._changing:
            if self._faults is not None:
                self._end_faults(self._faults.active())

    @property
    def counters(self) -> dict[str, FaultCounters]:
        """What faults have done since the start of the network: the sum for each container
        (``"db"``), and for each pair (``"app-db"``).
        """
        with self._changing, explained("read the counters of faults"):
            return {} if self._faults is None else self._faults.counters()

    def _start_fault(self, given: tuple[str | Connectable, ...], values: FaultValues) -> Fault:
        with self._changing:
            self.start()
            names = tuple(self._known_name(one) for one in given)
            if len(set(names)) < len(names):
                raise SettingsError("fault", names, "two different containers")
            with explained(f"apply a fault on the network {self.name}"):
                return self._relayed().add(names, values, lambda fault: self._end_faults([fault]))

    def _end_faults(self, faults: list[Fault]) -> None:
        with self._changing, explained("end a fault"):
            if self._state == "running" and self._faults is not None:
                self._faults.remove(faults)

    def _relayed(self) -> NetworkFaults:
        """Return the faults of the network; start their relay at the first call."""
        if self._faults is None:
            from pytest_sandbox.container.network_faults import NetworkFaults

            self._faults = NetworkFaults(self._bridge, self._launcher, self._place)
        return self._faults

    def _update_faults(self, number: int) -> None:
        """Apply the faults to a container that was connected; start those of the setting."""
        first, self._first_faults = self._first_faults, []
        for names, values in first:
            self._relayed().add(names, values, lambda fault: self._end_faults([fault]))
        if self._faults is not None:
            self._faults.update(number)

    def _place(self, name: str) -> Place | None:
        """Return the place of the container with this name, if one is connected."""
        from pytest_sandbox.container.network_faults import Place

        for number, pidfd in self._pidfds.items():
            endpoint = self._endpoints[number]
            if name in endpoint.names:
                return Place(number, endpoint.address, pidfd)
        return None

    def _known_name(self, given: object) -> str:
        """Return the host name of a container that is given by a name, its address or itself.

        Raises :class:`SettingsError`, which lists the containers.
        """
        handle = getattr(given, "handle", None)
        wanted = str(given if handle is None else handle.id).lower()
        for endpoint in self._endpoints.values():
            if wanted in {endpoint.address, *(name.lower() for name in endpoint.names)}:
                return endpoint.names[0]
        raise SettingsError("fault", given, self._known_containers())

    def _known_containers(self) -> str:
        on_it = ", ".join(f"{name} ({address})" for name, address in self.addresses.items())
        return f"a container on the network {self.name}: {on_it or 'it has none; start one'}"

    def captured(self, since: float) -> bytes | None:
        """Return what its containers have sent since a time, as the content of a pcap file; None
        without a capture.
        """
        with self._changing, explained("read the captured traffic"):
            is_captured = self._state == "running" and self._capture is not None
            return self._capture.frames(since) if is_captured and self._capture else None

    # -- for containers

    def hosts(self) -> tuple[str, str, bool]:
        """Return the volume that mounts the hosts file at /etc/hosts; start the network."""
        return self.start()._hosts.path, "/etc/hosts", True  # noqa: SLF001 - its own

    def attach(self, identity: str, names: tuple[str, ...], pidfd: int) -> Endpoint:
        """Give a container an address, and connect it; ``pidfd`` refers to its init, ``names`` are
        its host name, if it is not the id, and its aliases.

        Raises :class:`SettingsError` for names in use, :class:`SetupError` if all addresses are.
        """
        with self._changing:
            self.start()
            used = {name: one.address for one in self._endpoints.values() for name in one.names}
            check_unused(names, used, self.name)
            names = tuple(dict.fromkeys((*names, identity)))
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
        endpoint's address; then add its names to the hosts file and to the name server.
        """
        from ipaddress import IPv4Interface

        with explained(f"connect to the network {self.name}"):
            sockets = self._bridge.plug(
                endpoint.number, pidfd, IPv4Interface((endpoint.address, self._subnet.prefixlen))
            )
            try:
                with self._changing:
                    self._hosts.add(endpoint.address, *endpoint.names)
                    entry = Entry(endpoint.number, pidfd, endpoint.address, endpoint.names)
                    self._name_server.add(entry, sockets)
                    self._pidfds[endpoint.number] = pidfd
                    self._update_faults(endpoint.number)
            finally:
                close_all(sockets)

    def unplug(self, endpoint: Endpoint) -> None:
        """Remove the device of a container that runs, before :meth:`detach`."""
        with explained(f"disconnect from the network {self.name}"), self._changing:
            bridge = self.start()._bridge  # noqa: SLF001 - its own
            bridge.unplug(endpoint.number)
            bridge.close_name_link(self._pidfds[endpoint.number])

    def detach(self, endpoint: Endpoint) -> None:
        """Free the address and the names of a container that has ended; the kernel removes its
        device.
        """
        with self._changing:
            if self._state == "running" and endpoint.number in self._endpoints:
                del self._endpoints[endpoint.number]
                self._pidfds.pop(endpoint.number, None)
                self._name_server.remove(endpoint.number)
                if self._faults is not None:
                    self._faults.forget(endpoint.number)
                with suppress(FileNotFoundError):
                    self._hosts.remove(endpoint.address)

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
