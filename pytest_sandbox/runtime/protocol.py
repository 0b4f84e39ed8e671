"""Framed messages with file descriptors over a Unix stream socket, and the launcher's protocol.

A frame is a header (``!II``: the length of the text, the count of descriptors) and the text, a
JSON object; the descriptors travel with the header as SCM_RIGHTS (unix(7)). JSON and never pickles:
what comes out of a container is data, not code.

The client sends to the launcher:

=================  ================================================================================
message            meaning, and the answer (fields) + [descriptors]
=================  ================================================================================
``create``         create a container of ``spec``, or hand out the prewarmed one:
                   ``created`` (id, pid) + [init's pidfd]
``prewarm``        prewarm the next container of ``spec``; no answer
``claim``          the client has taken the prewarmed container ``id``; no answer
``closed``         the client does not need the container ``id`` any more, and says whether it has
                   connected its network namespace (``has_unused_network``); no answer
``cancel``         the client does not wait any more for the answer to ``request_id``: close what
                   it made; no answer
``layer``          ``layer`` (points: where its overlays are) + [the writable layer's directory]
``unreachable``    ``unreachable`` (paths: the host's sockets, FIFOs and directories that
                   containers do not reach)
``relay``          start a relay of published ports: ``relay`` + [its socket]
``hold_layer``     give the writable layer of ``id`` to the layer holder as ``key``: ``held``
``new_layer``      make an empty layer ``key`` in the layer holder: ``new_layer`` + [its directory]
``release_layer``  the client does not need the layer ``key`` any more; no answer
``renew``          give a container whose layer is held a new init and a new layer:
                   ``renewed`` (as ``created``)
=================  ================================================================================

The launcher sends to the client, besides the answers:

=================  ================================================================================
``hello``          the launcher is ready + [the payloads' user namespaces, if there are any]
``prewarmed``      a container of ``spec_id`` may be claimed (id, pid, file_stamps) +
                   [init's pidfd]
``error``          the request failed (code: :class:`ErrorCode`), or the launcher did not start
=================  ================================================================================

A request that is answered has a ``request`` number, and its answer has the same one. An answer that
nobody waits for any more is discarded with its descriptors. ``create`` and ``prewarm`` have a
``spec_id``, so that a prewarmed container of an earlier spec is not mistaken for one of this spec.

Other processes of the user use a session's control socket (launcher/control_socket.py); a fork of
pytest reports by the messages of plugin/report_channel.py.
"""

from __future__ import annotations

import array
import errno
import fcntl
import json
import socket
import struct
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "MAX_BYTES",
    "Channel",
    "ErrorCode",
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
_MAX_FDS = 253  # SCM_MAX_FD of <net/scm.h>
#: The longest text of a message that is read, in bytes: specs are far below.
MAX_BYTES = 64 << 20


class ErrorCode(StrEnum):
    """What an ``error`` says: the launcher sets it, client/errors.py makes an exception of it.

    All but the first two have the fields ``step`` (what failed), ``reason`` (what the kernel or the
    step said) and ``errno`` (0: none).
    """

    #: The container has ended; no other field.
    ENDED = "ended"
    #: The host cannot do what was asked for: ``feature`` and ``remedy``.
    UNSUPPORTED = "unsupported"
    #: A step failed for a reason that no other code stands for.
    STEP_FAILED = "step-failed"
    #: A ulimit is over the hard limit of the client.
    ULIMIT_TOO_HIGH = "ulimit-too-high"
    #: A writable layer on disk cannot be limited.
    DISK_LIMIT_UNAVAILABLE = "disk-limit-unavailable"
    #: An unprivileged user may not create a user namespace.
    NO_USER_NAMESPACE = "no-user-namespace"
    #: The kernel refuses a new /proc, as an outer container hides parts of its own.
    PROC_COVERED = "proc-covered"


class InvalidMessageError(EOFError):
    """The other end sent something that is not a message; what follows cannot be read either."""


class LostDescriptorsError(OSError):
    """The descriptors of ``message`` are lost, as this process has too many open (recvmsg(2),
    MSG_CTRUNC).
    """

    def __init__(self, sent: int, received: int, message: Message) -> None:
        super().__init__(
            errno.EMFILE,
            f"{sent} descriptors were sent and {received} received: this process has too many "
            "open files (ulimit -n)",
        )
        self.message = message


class Channel:
    """One end of a connection. It has no lock: threads that share it serialize what they send."""

    __slots__ = ("socket",)

    def __init__(self, socket_: socket.socket) -> None:
        self.socket = socket_

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Return two connected ends, with descriptors over 2.

        A process that has closed its standard streams would otherwise get one as its stdout.
        """
        ours, theirs = map(
            _above_standard_streams, socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        )
        return cls(ours), cls(theirs)

    @classmethod
    def of(cls, fd: int) -> Channel:
        """Return the end with the descriptor ``fd``, and own it."""
        return cls(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=fd))

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message with descriptors, which stay open here.

        Raises :class:`BrokenPipeError` or :class:`ConnectionResetError` if the other end is
        closed.
        """
        frame = packed(message, len(fds))
        sent = self.socket.sendmsg([frame], rights_of(fds), socket.MSG_NOSIGNAL)
        if sent < len(frame):
            self.socket.sendall(memoryview(frame)[sent:], socket.MSG_NOSIGNAL)

    def receive(self) -> tuple[Message, list[int]]:
        """Wait for a message; return it with its descriptors (close-on-exec, owned by the caller).

        Raises :class:`EOFError` if the other end is closed, also in the middle of a message, and
        :class:`LostDescriptorsError`.
        """
        space = socket.CMSG_SPACE(_MAX_FDS * 4)
        try:
            header, ancillary, _flags, _address = self.socket.recvmsg(
                _HEADER.size, space, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            header, ancillary = b"", []
        fds = _descriptors(ancillary)
        try:
            if not header:
                _raise_closed()
            length, count = unpacked(header + self._exactly(_HEADER.size - len(header)))
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
                _raise_closed()
            parts += part
        return bytes(parts)

    def fileno(self) -> int:
        """Return the descriptor, for poll(2); -1 once closed."""
        return self.socket.fileno()

    def close(self) -> None:
        """Close this end."""
        self.socket.close()


def _raise_closed() -> NoReturn:
    raise EOFError("the other end of the channel is closed")


def packed(message: Message, descriptors: int = 0) -> bytes:
    """Return the frame of a message with this many descriptors."""
    body = json.dumps(message).encode()
    return _HEADER.pack(len(body), descriptors) + body


def unpacked(header: bytes, max_bytes: int = MAX_BYTES) -> tuple[int, int]:
    """Return the length of the text in bytes and the count of descriptors that a header announces.

    Raises :class:`InvalidMessageError` if they are over ``max_bytes``, or over what the kernel
    passes, before memory is allocated for them.
    """
    length, count = _HEADER.unpack(header)
    if length > max_bytes or count > _MAX_FDS:
        raise InvalidMessageError(
            f"a message of {length} bytes and {count} descriptors was announced; the limits are "
            f"{max_bytes} and {_MAX_FDS}"
        )
    return length, count


def message_of(body: bytes) -> Message:
    """Return the JSON object in a message's text.

    Raises :class:`InvalidMessageError` for anything else.
    """
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidMessageError(f"a message is not JSON: {type(error).__name__}") from error
    if not isinstance(message, dict):
        raise InvalidMessageError(f"a message is a {type(message).__name__} and not an object")
    return message


def rights_of(fds: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    """Return descriptors as the ancillary data of sendmsg(2)."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []


def _above_standard_streams(one: socket.socket) -> socket.socket:
    if one.fileno() > 2:
        return one
    with one:
        return socket.socket(fileno=fcntl.fcntl(one.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        socket.close(fd)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()
