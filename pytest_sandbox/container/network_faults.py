"""The faults of a network: which containers have some, and the relay that applies them.

A container with faults is diverted: its frames go through the relay (launcher/frame_relay.py). The
frames of other containers do not.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, Final, Self

from pytest_sandbox.container.fault_values import FaultCounters, FaultValues
from pytest_sandbox.container.relay import Relay
from pytest_sandbox.errors import SetupError, UnsupportedError
from pytest_sandbox.linux import network_sockets
from pytest_sandbox.linux.rtnetlink import hardware_address
from pytest_sandbox.linux.signals import Deferred

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_sandbox.client.session import LauncherClient
    from pytest_sandbox.linux.rtnetlink import Bridge
    from pytest_sandbox.runtime.protocol import Message

__all__ = ["Fault", "NetworkFaults", "Place"]

_STEP: Final = "apply a network fault"
#: Seconds for connections to be reset, and between two attempts: the kernel sends a challenge ACK
#: for a connection at most twice a second (tcp_invalid_ratelimit).
_RESET_TIMEOUT: Final = 5.0
_RESET_INTERVAL: Final = 0.02


@dataclass(frozen=True)
class Place:
    """A container on the network: the number of its port, its address, and a pidfd of its init."""

    number: int
    address: str
    pidfd: int

    @property
    def hardware(self) -> str:
        """The MAC address, as hexadecimal text."""
        return hardware_address(IPv4Address(self.address)).hex()


class Fault:
    """A fault of a network, which lasts until the end of its ``with`` block, :meth:`end` or
    :meth:`Network.heal`.

    ``names`` are those of the container or the pair. ``seed`` is the one of the random numbers,
    also if none was given.
    """

    def __init__(
        self, number: int, names: tuple[str, ...], values: FaultValues, end: Callable[[Fault], None]
    ) -> None:
        self.number = number
        self.names = names
        self.values = values
        self._end = end

    @property
    def seed(self) -> int:
        """The seed; with the same one, the same packets are lost."""
        return self.values.seed

    def __repr__(self) -> str:
        return f"<Fault {'-'.join(self.names)} {self.values}>"

    def end(self) -> None:
        """End the fault; what it has delayed is sent at once. A second call does nothing."""
        self._end(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.end()


class NetworkFaults:
    """The faults of one network; its lock is the network's.

    ``find`` returns the place of a container by a name, or None.
    """

    def __init__(
        self, bridge: Bridge, launcher: LauncherClient, find: Callable[[str], Place | None]
    ) -> None:
        self._bridge = bridge
        self._launcher = launcher
        self._find = find
        self._numbers = itertools.count(1)
        self._active: dict[int, Fault] = {}
        self._diverted: set[int] = set()
        self._ended: dict[str, FaultCounters] = defaultdict(FaultCounters)
        self._relay: Relay | None = None

    def _ask(self, message: Message, fds: Sequence[int] = ()) -> Message:
        """Return the answer of the relay, which the first message starts.

        Raises :class:`SetupError`, also if it was killed.
        """
        if self._relay is None:
            _answer, started = self._launcher.request({"op": "relay", "kind": "frames"})
            with started, Deferred():
                self._relay = Relay(_STEP, started.take())
        return self._relay.ask(message, fds)[0]

    # -- faults

    def add(
        self, names: tuple[str, ...], values: FaultValues, end: Callable[[Fault], None]
    ) -> Fault:
        """Start a fault. Raises :class:`SetupError`, and then it has not started."""
        fault = Fault(next(self._numbers), names, values, end)
        self._active[fault.number] = fault
        try:
            self.update()
            if values.reset:
                self._reset(fault)
        except BaseException:
            self.remove([fault])
            raise
        return fault

    def remove(self, faults: list[Fault]) -> None:
        """End those of the faults that are active."""
        faults = [fault for fault in faults if fault.number in self._active]
        if not faults:
            return
        with suppress(SetupError):  # the relay was killed, and its counters with it
            counters = self._counters()
            for fault in faults:
                self._ended["-".join(fault.names)] = _added(
                    self._ended["-".join(fault.names)], counters.get(fault.number, FaultCounters())
                )
        for fault in faults:
            del self._active[fault.number]
        try:
            self.update()
        except SetupError:
            if self._active:
                raise
            for number in list(self._diverted):
                self._undivert(number)
            self.close()  # the next fault starts another relay

    def active(self) -> list[Fault]:
        """Return the faults that have not ended."""
        return list(self._active.values())

    def counters(self) -> dict[str, FaultCounters]:
        """Return the sums of the counters by the names of the faults."""
        found = dict(self._ended)
        counters = self._counters() if self._active else {}
        for number, fault in self._active.items():
            name = "-".join(fault.names)
            found[name] = _added(
                found.get(name, FaultCounters()), counters.get(number, FaultCounters())
            )
        return found

    def _counters(self) -> dict[int, FaultCounters]:
        counters = self._ask({"op": "counters"})["counters"]
        return {int(key): FaultCounters(**one) for key, one in counters.items()}

    # -- the diversion of containers

    def update(self, replaced: int | None = None) -> None:
        """Divert the containers that the faults are about, and no others; tell the relay.

        ``replaced`` is the number of a port that is a new one, on the bridge.
        """
        rules = [(fault, self._places(fault)) for fault in self._active.values()]
        needed = {number for _fault, places in rules for number, _peer in places}
        for number in needed - self._diverted:
            self._join(number)
        self._ask(
            {
                "op": "rules",
                "rules": [
                    {"id": fault.number, "at": places, **fault.values.to_message()}
                    for fault, places in rules
                ],
            }
        )
        again = {number for number in needed if number == replaced}
        for number in (needed - self._diverted) | again:
            self._bridge.switch(number, diverted=True)
            self._diverted.add(number)
        for number in self._diverted - needed:
            self._undivert(number)

    def _places(self, fault: Fault) -> list[tuple[int, str]]:
        """Return the number of each container that a fault is about, with its peer's MAC address.

        A name has none while no container of this name is on the network.
        """
        found = [place for name in fault.names if (place := self._find(name)) is not None]
        if len(found) < len(fault.names):
            return []
        if len(found) == 1:
            return [(found[0].number, "")]
        one, other = found
        return [(one.number, other.hardware), (other.number, one.hardware)]

    def forget(self, number: int) -> None:
        """Remove the diversion of a container that is no longer on the network."""
        if number in self._diverted:
            self._undivert(number)
            with suppress(SetupError):  # the relay was killed
                self.update()

    def _join(self, number: int) -> None:
        fds = self._bridge.divert(number)
        try:
            self._ask({"op": "join", "number": number}, fds)
        except BaseException:
            self._bridge.remove_diversion(number)
            raise
        finally:
            for fd in fds:
                os.close(fd)

    def _undivert(self, number: int) -> None:
        """Connect a container to the bridge again, unless it has ended."""
        self._diverted.discard(number)
        with suppress(OSError):
            self._bridge.switch(number, diverted=False)
        with suppress(SetupError):  # the relay was killed
            self._ask({"op": "leave", "number": number})
        self._bridge.remove_diversion(number)

    # -- resets

    def _reset(self, fault: Fault) -> None:
        """Reset the open connections that a fault is about, and wait until they are."""
        place, *peers = [one for name in fault.names if (one := self._find(name)) is not None]
        diag = network_sockets.open_socket(
            place.pidfd,
            self._launcher.builder_fd,
            socket.AF_NETLINK,
            socket.SOCK_DGRAM,
            network_sockets.NETLINK_SOCK_DIAG,
        )
        try:
            self._reset_all(fault, place, diag, {peer.address for peer in peers})
        except FileNotFoundError as error:
            remedy = "The kernel has no inet_diag: `modprobe inet_diag tcp_diag` as root."
            raise UnsupportedError("reset=True", remedy) from error
        finally:
            os.close(diag)

    def _reset_all(self, fault: Fault, place: Place, diag: int, peers: set[str]) -> None:
        wanted = {
            one
            for one in network_sockets.connections(diag)
            if one.address == place.address and (not peers or one.peer_address in peers)
        }
        deadline = time.monotonic() + _RESET_TIMEOUT
        while wanted := wanted & set(network_sockets.connections(diag)):
            if time.monotonic() > deadline:
                raise SetupError("reset connections", f"{len(wanted)} are still open")
            connections: list[Any] = [
                (*one, hardware_address(IPv4Address(one.peer_address)).hex()) for one in wanted
            ]
            self._ask(
                {
                    "op": "reset",
                    "id": fault.number,
                    "number": place.number,
                    "hardware": place.hardware,
                    "connections": connections,
                }
            )
            time.sleep(_RESET_INTERVAL)  # there is no descriptor to poll for it

    # -- the end

    def close(self) -> None:
        """End the relay."""
        relay, self._relay = self._relay, None
        if relay is not None:
            relay.close()

    def abandon(self) -> None:
        """Close the descriptors in a fork."""
        if self._relay is not None:
            self._relay.abandon()


def _added(one: FaultCounters, other: FaultCounters) -> FaultCounters:
    return FaultCounters(*(a + b for a, b in zip(one, other, strict=True)))
