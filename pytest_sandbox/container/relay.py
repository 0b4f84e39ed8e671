"""The client's side of a relay (launcher/relays.py)."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import SetupError
from pytest_sandbox.linux import local_socket, process
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.runtime.protocol import Channel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_sandbox.runtime.protocol import Message

__all__ = ["Egress", "Published", "Relay"]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all

_UNSUPPORTED = {errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT}
#: Seconds for the relay to answer, and to end.
_TIMEOUT = 10.0


class Relay:
    """A relay; ``step`` is what it is for, in error messages."""

    #: What helps if the kernel lacks something.
    remedy = ""

    def __init__(self, step: str, channel: int) -> None:
        self._step = step
        #: A descriptor and no socket object, which would close another file's descriptor in a fork.
        self.channel = channel

    def ask(self, message: Message, fds: Sequence[int] = ()) -> tuple[Message, list[int]]:
        """Send a message to the relay; return its answer with descriptors, which the caller owns.

        Raises :class:`SetupError`.
        """
        with self._connection() as channel:
            channel.send(message, fds)
            answer, received = channel.receive()
        if answer["op"] == "failed":
            remedy = self.remedy if answer["errno"] in _UNSUPPORTED else ""
            raise SetupError(self._step, str(answer["reason"]), remedy)
        return answer, received

    def tell(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message without waiting for the relay. Raises :class:`SetupError`."""
        with self._connection() as channel:
            channel.send({**message, "quiet": True}, fds)

    @contextmanager
    def _connection(self) -> Iterator[Channel]:
        if self.channel < 0:
            raise SetupError(self._step, "the relay was closed")
        with socket.socket(fileno=os.dup(self.channel)) as connection:
            local_socket.set_timeouts(connection, _TIMEOUT)
            try:
                yield Channel(connection)
            except (OSError, EOFError) as error:
                raise SetupError(self._step, "its relay has ended") from error

    def close(self, *, wait: bool = True) -> None:
        """End the relay with all connections, and wait until it has ended; a second call does
        nothing.

        It is shut down and not just closed, since a fork of this process may have a copy.
        """
        with Deferred():
            fd, self.channel = self.channel, -1
            if fd < 0:
                return
            with socket.socket(fileno=fd) as connection, suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
                if wait:
                    process.is_readable(connection.fileno(), _TIMEOUT)  # the end of its process

    def enter(self, pidfd: int) -> None:
        """Connect in the network of this init, the first or a later one, from now on."""
        self.ask({"op": "enter"}, [pidfd])

    def abandon(self) -> None:
        """Close the descriptor of a relay that belongs to another process."""
        fd, self.channel = self.channel, -1
        if fd >= 0:
            os.close(fd)


class Published(Relay):
    """The relay of the ports of one container: ``address`` is the container's own, empty until they
    are published; ``ports`` are those of the host by those inside.
    """

    def __init__(self, channel: int) -> None:
        super().__init__("publish ports", channel)
        self.address = ""
        self.ports: dict[int | str, int] = {}


class Egress(Relay):
    """The forwarder of outgoing connections."""

    remedy = (
        "The kernel needs veth pairs, packet sockets and policy routing (CONFIG_VETH, "
        "CONFIG_PACKET, CONFIG_IP_MULTIPLE_TABLES)."
    )

    def __init__(self, channel: int) -> None:
        super().__init__("forward connections", channel)

    def attempts(self, *, forget: bool = False) -> list[dict[str, Any]]:
        """Return the connections that were not made: host, port (None: the name was only looked
        up), protocol, program (empty if unknown), reason and count. With ``forget``, the next call
        returns later ones alone: several tests may share a container.
        """
        answer, _fds = self.ask({"op": "attempts", "forget": forget})
        return list(answer["attempts"])
