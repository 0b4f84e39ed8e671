"""The hint for a refused connection: inside, a container has a loopback device of its own, so a
server that runs outside is not there.

A hint is given only if something outside listens on the very port or Unix socket. The exception
does not name it, but the frames of its traceback do, or the message of a client library.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.linux import sockets
from pytest_sandbox.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["describe", "target_of"]

#: Client libraries raise exceptions of their own, with the system's message in the text.
_MESSAGE = "connection refused"
_PORT = re.compile(r"\bport[ =]+(\d{1,5})\b|[\w\]]:(\d{1,5})\b")
_PATH = re.compile(r"socket \"(/[^\"]+)\"")
_MAX_FRAMES, _MAX_LOCALS, _MAX_TEXT = 50, 200, 10_000
_LOOPBACK = ("127.", "::1", "0.0.0.0", "::")


def target_of(error: BaseException) -> str | None:
    """Return the port or the path of the Unix socket to which a connection was refused; "" if it is
    not known, None if the exception is another one.
    """
    text = ""
    with suppress(Exception):  # an object of the suite's
        text = str(error)[:_MAX_TEXT]
    if not isinstance(error, ConnectionRefusedError):
        if _MESSAGE not in text.lower():
            return None
        return _in_text(text)
    return next(_in_frames(error), "") or _in_text(text)


def _in_text(text: str) -> str:
    if match := _PATH.search(text):
        return match[1]
    match = _PORT.search(text)
    return (match[1] or match[2]) if match else ""


def _in_frames(error: BaseException) -> Iterator[str]:
    """Yield the addresses in the local variables of a traceback, the innermost first."""
    frames: list[FrameType] = []
    traceback = error.__traceback__
    while traceback is not None and len(frames) < _MAX_FRAMES:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    for frame in reversed(frames):
        for value in list(frame.f_locals.values())[:_MAX_LOCALS]:
            if found := _address(value):
                yield found


def _address(value: object) -> str:
    """Return the port of an address of AF_INET or AF_INET6, or the path of an absolute one of
    AF_UNIX that is a socket.
    """
    if type(value) is tuple and len(value) in {2, 4} and type(value[0]) is str:
        port = value[1]
        return str(port) if type(port) is int and 0 < port < 1 << 16 else ""
    if type(value) is str and value.startswith("/") and not os.path.isdir(value):
        return value
    return ""


def describe(target: str, *, has_own_loopback: bool) -> list[str]:
    """Return the hint for a port or a Unix socket, if something outside listens on it."""
    if target.startswith("/"):
        return _unix_hint(target)
    if not target or not has_own_loopback:
        return []
    listening = [one for one in sockets.all_listening() if one.port == int(target)]
    found = [one.address for one in listening if one.address.startswith(_LOOPBACK)]
    if not found:
        return []
    if any(one.port == int(target) for one in sockets.listening(os.getpid())):
        who, what = "the pytest process", "a server of a fixture with a higher scope"
    else:
        who, what = "another process", "a service of the host or of a fixture with a higher scope"
    hint = (
        f"The connection was refused inside, but {who} listens outside, on {found[0]}:{target}: "
        f"{what} runs outside, and the container has a loopback of its own. Use "
        'network="host", or a function-scoped fixture, which runs inside.'
    )
    return [hint]


def _unix_hint(path: str) -> list[str]:
    if all(one.path != path for one in sockets.all_listening()):
        return []
    is_own = any(one.path == path for one in sockets.listening(os.getpid()))
    who = "The pytest process" if is_own else "A process of the host"
    shown = printable(path)
    hint = (
        f"{who} listens outside on the Unix socket {shown}, which cannot be connected to through "
        f'the container\'s writable layer. volumes=["{shown}:{shown}"] passes it in.'
    )
    return [hint]
