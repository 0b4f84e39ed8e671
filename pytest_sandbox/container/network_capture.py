"""The capture of a network's traffic (``--sandbox-pcap``)."""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from pytest_sandbox.container.relay import Relay
from pytest_sandbox.errors import SetupError
from pytest_sandbox.linux.signals import Deferred

if TYPE_CHECKING:
    from pytest_sandbox.client.session import LauncherClient
    from pytest_sandbox.linux.rtnetlink import Bridge

__all__ = ["Captured", "NetworkCapture", "closed", "enable", "is_enabled"]

_enabled = False


class Captured(NamedTuple):
    """The traffic of a network: its name, when it was read, and the content of a pcap file."""

    name: str
    when: float
    data: bytes


#: Those of the networks that were closed last: the report of a test is made after its networks are.
closed: deque[Captured] = deque(maxlen=16)


def enable() -> None:
    """Have networks that start from now on capture their traffic."""
    global _enabled  # noqa: PLW0603 - an option of the session, not of each network
    _enabled = True


def is_enabled() -> bool:
    """Return whether networks capture their traffic."""
    return _enabled


class NetworkCapture:
    """The capture of one network: the last megabyte that its containers have sent."""

    def __init__(self, name: str, bridge: Bridge, launcher: LauncherClient) -> None:
        self._name = name
        _answer, fds = launcher.request({"op": "relay", "kind": "capture"})
        with fds, Deferred():
            self._relay = Relay("capture a network's traffic", fds.take())
        packets = bridge.open_packets()
        try:
            self._relay.ask({"op": "open"}, [packets])
        finally:
            os.close(packets)

    def frames(self, since: float) -> bytes:
        """Return what came since a time (:func:`time.time`), as the content of a pcap file.

        Raises :class:`SetupError` if the relay was killed.
        """
        _answer, fds = self._relay.ask({"op": "frames", "since": since})
        with open(fds[0], "rb") as file:
            file.seek(0)
            return file.read()

    def close(self) -> None:
        """End the relay, and keep what it has in :data:`closed`."""
        with suppress(SetupError):  # it was killed
            closed.append(Captured(self._name, time.time(), self.frames(0)))
        self._relay.close()

    def abandon(self) -> None:
        """Close the descriptors in a fork."""
        self._relay.abandon()
