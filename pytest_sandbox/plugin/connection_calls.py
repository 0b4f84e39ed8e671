"""The calls by which a test process connects or looks up a name, with the line of the test's code.

An audit hook (:func:`sys.addaudithook`) notes them. It sees the Python code of the test process
alone, and not other programs. An audit hook cannot be removed, so only test processes get one.
"""

from __future__ import annotations

import inspect
import os
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.plugin.messages import MAX_CALLS
from pytest_sandbox.plugin.stash import SETTINGS

if TYPE_CHECKING:
    from types import FrameType

    import pytest

    from pytest_sandbox.plugin.report_channel import ReportChannel

__all__ = ["ConnectionCalls"]

_CONNECT: Final = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
_LOOK_UP: Final = frozenset({"socket.getaddrinfo", "socket.gethostbyname"})
_ALL: Final = _CONNECT | _LOOK_UP
_INTERNET: Final = frozenset({socket.AF_INET, socket.AF_INET6})
_MOST_FRAMES: Final = 200
_LONGEST_HOST: Final = 255
_OF_THIS_HOST: Final = ("127.", "0.0.0.0", "::1", "::ffff:127.", "localhost", "ip6-localhost")

_Call = tuple[str, int | None, str, str]


class ConnectionCalls:
    """The calls of one test: host, port, protocol ("tcp", "udp", or "dns" for a look-up), and
    ``FILE:LINE``, each with its count.
    """

    def __init__(self, item: pytest.Item) -> None:
        self._settings = item.stash.get(SETTINGS, None)
        self._root = str(item.config.rootpath) + os.sep
        self._counts: dict[_Call, int] = {}

    def begin(self) -> None:
        """Note calls from now on, unless the container has the host's network."""
        if self._settings is None or self._settings.network == "host":
            return

        # Not a method: the hook is called for every event of the interpreter, and a function takes
        # half the time.
        def on_event(
            event: str, arguments: tuple[Any, ...], watched: frozenset[str] = _ALL
        ) -> None:
            if event in watched:
                self._on_event(event, arguments)

        sys.addaudithook(on_event)

    def send(self, channel: ReportChannel) -> None:
        """Send the calls, if there were any."""
        counts, self._counts = self._counts, {}
        if not counts:
            return
        known = _known_names() if any(call[2] == "dns" for call in counts) else set()
        calls = [(*call, count) for call, count in counts.items() if call[0] not in known]
        if calls:
            channel.send("connections", calls)

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        with suppress(Exception):  # whatever the arguments are, the call decides
            self._note(event, arguments)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _LOOK_UP:
            host, port, protocol = arguments[0], (*arguments, None)[1], "dns"
            if isinstance(host, bytes):
                host = host.decode("ascii")
        elif arguments[0].family in _INTERNET:
            host, port = arguments[1][:2]
            protocol = "udp" if arguments[0].type == socket.SOCK_DGRAM else "tcp"
        else:
            return
        if not isinstance(host, str) or not host or len(host) > _LONGEST_HOST:
            return
        host = host.lower().rstrip(".")
        is_address = ":" in host or host.replace(".", "").isdigit()
        if host.startswith(_OF_THIS_HOST) or (protocol == "dns" and is_address):
            return
        call = host, _number(port), protocol, self._line()
        if call in self._counts or len(self._counts) < MAX_CALLS:
            self._counts[call] = self._counts.get(call, 0) + 1

    def _line(self) -> str:
        """Return the innermost line of the suite's own code; empty if it called nothing."""
        frame: FrameType | None = inspect.currentframe()
        for _ in range(_MOST_FRAMES):
            if frame is None:
                break
            name = frame.f_code.co_filename
            if name.startswith(self._root) and "site-packages" not in name:
                return f"{name.removeprefix(self._root)}:{frame.f_lineno}"
            frame = frame.f_back
        return ""


def _number(port: object) -> int | None:
    """Return a port as a number; None if the call names none."""
    if isinstance(port, str) and not port.isdecimal():
        return socket.getservbyname(port)
    number = int(port) if isinstance(port, int | str) else 0
    return number if 0 < number <= 0xFFFF else None


def _known_names() -> set[str]:
    """Return the names of hosts(5) inside: to look them up needs no network."""
    found: set[str] = {socket.gethostname().lower()}
    with suppress(OSError), open("/etc/hosts", encoding="utf-8", errors="replace") as file:
        for line in file:
            found.update(name.lower() for name in line.partition("#")[0].split()[1:])
    return found
