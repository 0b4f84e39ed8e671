"""The client's side of the name server of a network (launcher/name_server.py)."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_sandbox.container.relay import Relay
from pytest_sandbox.errors import SetupError
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.runtime.protocol import close_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.client.session import LauncherClient
    from pytest_sandbox.linux.rtnetlink import Bridge

__all__ = ["Entry", "NameServer"]

_STEP: Final = "start the name server of a network"


class Entry(NamedTuple):
    """A container that is served: its number, the pidfd of its init, its address, its names."""

    number: int
    pidfd: int
    address: str
    names: tuple[str, ...]


class NameServer:
    """The name server of one network; its process starts with the first container.

    Nothing waits for the process: queries wait in the sockets that it gets. If it was killed, names
    are in the hosts file only, until the next container is added: then a new process starts, for
    all of them.
    """

    def __init__(self, launcher: LauncherClient, bridge: Bridge) -> None:
        self._launcher, self._bridge = launcher, bridge
        self._relay: Relay | None = None
        self._entries: dict[int, Entry] = {}

    def add(self, entry: Entry, sockets: Sequence[int]) -> None:
        """Serve a container; ``sockets`` are those of :meth:`Bridge.plug`.

        Raises OSError and :class:`SetupError`.
        """
        self._entries[entry.number] = entry
        if self._relay is not None:
            with suppress(SetupError):  # it was killed
                self._tell_of(self._relay, entry, sockets)
                return
            self._relay.abandon()
        self._relay = self._start()
        self._tell_of(self._relay, entry, sockets)
        for other in self._entries.values():
            if other is not entry:
                self._add_again(self._relay, other)

    def _start(self) -> Relay:
        _answer, fds = self._launcher.request({"op": "relay", "kind": "names"})
        with fds, Deferred():
            return Relay(_STEP, fds.take())

    @staticmethod
    def _tell_of(relay: Relay, entry: Entry, sockets: Sequence[int]) -> None:
        message = {"op": "add", "number": entry.number, "address": entry.address}
        relay.tell({**message, "names": entry.names}, sockets)

    def _add_again(self, relay: Relay, entry: Entry) -> None:
        with suppress(ProcessLookupError):  # it has just ended
            sockets = self._bridge.open_name_link(entry.pidfd)
            try:
                self._tell_of(relay, entry, sockets)
            finally:
                close_all(sockets)

    def remove(self, number: int) -> None:
        """Forget a container."""
        if self._entries.pop(number, None) is not None and self._relay is not None:
            with suppress(SetupError):  # it was killed
                self._relay.tell({"op": "remove", "number": number})

    def close(self) -> None:
        """End the process, without waiting for it."""
        if self._relay is not None:
            self._relay.close(wait=False)

    def abandon(self) -> None:
        """Close the descriptor in a fork."""
        if self._relay is not None:
            self._relay.abandon()

    def __del__(self) -> None:
        """End the process of a network that nothing refers to."""
        self.abandon()
