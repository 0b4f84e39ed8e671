"""The client's side of relays: of published ports (launcher/port_relay.py), and of outgoing
connections (launcher/egress.py).
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import SetupError
from pytest_sandbox.linux import local_socket, process
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.runtime.protocol import Channel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.runtime.protocol import Message

__all__ = ["Egress", "Published", "RelayClient"]

_UNSUPPORTED = {errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT}
#: Seconds for the relay to answer, and to end.
_TIMEOUT = 10.0


class RelayClient:
    """A relay of one container: ``step`` and ``gone`` are for messages of its errors."""

    step = "start a relay"
    #: What helps if the kernel lacks something.
    remedy = ""
    gone = "the relay has ended"

    def __init__(self, channel: int) -> None:
        #: A descriptor and no socket object, which would close another file's descriptor in a fork.
        self.channel = channel

    def enter(self, pidfd: int) -> None:
        """Connect in the network of this init, the first or a later one, from now on."""
        self.ask({"op": "enter"}, [pidfd])

    def ask(self, message: Message, fds: Sequence[int]) -> Message:
        """Send a message to the relay, and return its answer. Raises :class:`SetupError`."""
        with socket.socket(fileno=os.dup(self.channel)) as connection:
            local_socket.set_timeouts(connection, _TIMEOUT)
            channel = Channel(connection)
            try:
                channel.send(message, fds)
                answer, _fds = channel.receive()
            except (OSError, EOFError) as error:
                raise SetupError(self.step, self.gone) from error
        if answer["op"] == "failed":
            remedy = self.remedy if answer["errno"] in _UNSUPPORTED else ""
            raise SetupError(self.step, str(answer["reason"]), remedy)
        return answer

    def close(self) -> None:
        """End the relay with all connections; a second call does nothing.

        It is shut down and not just closed, since a fork of this process may have a copy.
        """
        with Deferred():
            fd, self.channel = self.channel, -1
            if fd < 0:
                return
            with socket.socket(fileno=fd) as connection, suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
                process.is_readable(connection.fileno(), _TIMEOUT)  # the end of its process


class Published(RelayClient):
    """The relay of published ports: ``address`` is the container's own, ``ports`` are those of the
    host by those inside.
    """

    step = "publish ports"
    gone = "the relay of its ports has ended"

    def __init__(self, address: str, ports: dict[int | str, int], channel: int) -> None:
        super().__init__(channel)
        self.address = address
        self.ports = ports


class Egress(RelayClient):
    """The forwarder of outgoing connections."""

    step = "forward connections"
    gone = "the forwarder of its connections has ended"
    remedy = (
        "The kernel needs veth pairs, packet sockets and policy routing (CONFIG_VETH, "
        "CONFIG_PACKET, CONFIG_IP_MULTIPLE_TABLES)."
    )

    def attempts(self) -> list[dict[str, Any]]:
        """Return the connections that were not made: host, port (None: the name was only looked
        up), protocol, program (empty if unknown), reason and count.
        """
        return list(self.ask({"op": "attempts"}, [])["attempts"])
