"""Framed messages with file descriptors over a Unix stream socket, and the protocol that they
speak.

A message is a JSON object behind a header (``!II``: its length, the count of its descriptors); the
descriptors travel with the header as SCM_RIGHTS (unix(7)). JSON, never pickles: what comes out of a
container is data.

===========  ==================  ==========================================================================================
from -> to   message             meaning, and what is answered
===========  ==================  ==========================================================================================
launcher     ``hello``           the launcher is ready: + [the payloads' user namespace], where there is one
-> client    ``ready``           a container was made ahead and may be taken: id, pid, seen + [init's pidfd]; nobody asked
client ->    ``taken``           the offered container is the client's; no answer
launcher     ``create``          a container of this spec: ``created`` (id, pid) + [init's pidfd]
             ``prepare``         have the next one of this spec made ahead; no answer
             ``closed``          the container is not needed any more; no answer
             ``cancel``          the client does not wait for the answer to ``answer`` any more:
             what it made is closed; no answer
             ``layer``           its writable layer: ``layer`` (the points of its overlays) + [its
             directory]
             ``refused``         what of the host containers do not reach: ``refused`` (paths)
             ``freeze``          hand its layer to the layer holder: ``frozen``; then ``renew``
             gives it a new one: ``renewed`` (as ``created``)
             ``shelve``          make an empty layer in the layer holder: ``shelved`` + [its
             directory]; ``unshelve`` drops one, without an answer launcher     ``error``
             what was asked for failed: the step, the reason, the errno -> client    ``ended``
             the container that was named has ended
             ``unsupported``     this host cannot do it: the feature, the remedy
===========  ==================  ==========================================================================================

A message that is answered has a number, ``request``, and its answer has the same one. An answer
that nobody waits for any more is discarded, with its descriptors. Messages that are not answered
have no number.

Other processes of the user ask at a session's control socket (launcher/control_socket.py); a fork
of pytest reports by messages of plugin/report_channel.py.
"""

from __future__ import annotations

import array
import fcntl
import json
import socket
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "MOST_BYTES",
    "Channel",
    "InvalidMessageError",
    "LostDescriptorsError",
    "Message",
    "close_all",
    "message_of",
    "packed",
    "rights_of",
    "unpacked",
]

Message = dict[str, Any]

_HEADER = struct.Struct("!II")
HEADER_SIZE = _HEADER.size
_MOST_FDS = 253  # SCM_MAX_FD of <net/scm.h>
#: The longest text of a message: specs and environments are far below.
MOST_BYTES = 64 << 20


class InvalidMessageError(EOFError):
    """The other end sent what is no message: nothing that follows can be understood either."""


class LostDescriptorsError(OSError):
    """This process has no room for the descriptors of a ``message``, which are gone (recvmsg(2),
    MSG_CTRUNC).
    """

    def __init__(self, sent: int, arrived: int, message: Message) -> None:
        super().__init__(
            24,
            f"{sent} descriptors were sent and {arrived} arrived: this process has too many open "
            "files (ulimit -n)",
        )
        self.message = message


class Channel:
    """One end of a conversation; not locked: who shares an end between threads holds a lock of its
    own around a send.
    """

    __slots__ = ("socket",)

    def __init__(self, socket_: socket.socket) -> None:
        self.socket = socket_

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Return two connected ends, neither of them in the place of a standard stream that the
        process has closed.
        """
        ours, theirs = map(
            _above_the_standards, socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        )
        return cls(ours), cls(theirs)

    @classmethod
    def of(cls, fd: int) -> Channel:
        """Return the end whose descriptor is ``fd``, which it owns from now on."""
        return cls(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=fd))

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message with descriptors, which stay open here.

        Raises :class:`BrokenPipeError` or :class:`ConnectionResetError` where the other end is
        gone.
        """
        frame = packed(message, len(fds))
        sent = self.socket.sendmsg([frame], rights_of(fds), socket.MSG_NOSIGNAL)
        if sent < len(frame):
            self.socket.sendall(memoryview(frame)[sent:], socket.MSG_NOSIGNAL)

    def receive(self) -> tuple[Message, list[int]]:
        """Wait for a message; return it with its descriptors (close-on-exec, owned by the caller).

        Raises :class:`EOFError` where the other end is gone, also half-way through a message, and
        :class:`LostDescriptorsError`.
        """
        space = socket.CMSG_SPACE(_MOST_FDS * 4)
        try:
            header, ancillary, _flags, _address = self.socket.recvmsg(
                _HEADER.size, space, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            header, ancillary = b"", []
        fds = _descriptors(ancillary)
        try:
            length, count = unpacked(
                header + self._exactly(_HEADER.size - len(header)) if header else self._ended()
            )
            message = message_of(self._exactly(length))
        except BaseException:
            close_all(fds)
            raise
        if len(fds) != count:
            close_all(fds)
            raise LostDescriptorsError(count, len(fds), message)
        return message, fds

    def _exactly(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            try:
                part = self.socket.recv(length - len(parts))
            except ConnectionResetError:
                part = b""
            if not part:
                self._ended()
            parts += part
        return bytes(parts)

    @staticmethod
    def _ended() -> bytes:
        raise EOFError("the other end of the channel is gone")

    def fileno(self) -> int:
        """Return the descriptor, for poll(2); -1 once closed."""
        return self.socket.fileno()

    def close(self) -> None:
        """Close this end."""
        self.socket.close()


def packed(message: Message, descriptors: int = 0) -> bytes:
    """Return a message as it is sent, with the count of its descriptors."""
    body = json.dumps(message).encode()
    return _HEADER.pack(len(body), descriptors) + body


def unpacked(header: bytes, most: int = MOST_BYTES) -> tuple[int, int]:
    """Return a header's length of the text, in bytes, and count of descriptors.

    Raises :class:`InvalidMessageError` over ``most`` bytes.
    """
    length, count = _HEADER.unpack(header)
    if length > most or count > _MOST_FDS:
        raise InvalidMessageError(
            f"a message of {length} bytes and {count} descriptors was announced; at most {most} "
            f"and {_MOST_FDS} are read"
        )
    return length, count


def message_of(body: bytes) -> Message:
    """Return the JSON object of a message's text.

    Raises :class:`InvalidMessageError` for anything else.
    """
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidMessageError(f"a message is no JSON: {type(error).__name__}") from error
    if not isinstance(message, dict):
        raise InvalidMessageError(f"a message is a {type(message).__name__} and not an object")
    return message


def rights_of(fds: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    """Return descriptors as sendmsg(2) takes them."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []


def _above_the_standards(one: socket.socket) -> socket.socket:
    if one.fileno() > 2:
        return one
    with one:
        return socket.socket(fileno=fcntl.fcntl(one.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that nobody will use."""
    for fd in fds:
        socket.close(fd)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()
