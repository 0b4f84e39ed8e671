"""The hints for a refused connection: inside, a container has a loopback device of its own, so a
server that runs outside is not there; nor is one that runs inside for a browser outside.

A hint is given only if something outside listens on the very port or Unix socket. The exception
does not name it, but the frames of its traceback do, or the message of a client library. The hint
for a browser is given only if something inside listens on the very port.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from subprocess import CalledProcessError

from pytest_sandbox.linux import sockets
from pytest_sandbox.plugin.error_frames import local_variables
from pytest_sandbox.printable import printable

__all__ = ["describe", "describe_browser", "port_of_browser", "target_of"]

#: Client libraries raise exceptions of their own, with the system's message in the text; the second
#: one is curl's.
_MESSAGES = ("connection refused", "couldn't connect to server")
_PORT = re.compile(r"\bport[ =]+(\d{1,5})\b|[\w\]]:(\d{1,5})\b")
#: The errors of Chromium and Firefox, as Playwright and Selenium show them, with the URL.
_BROWSER_MESSAGE = re.compile(r"\b(?:NS_)?ERR(?:OR)?_CONNECTION_REFUSED\b")
_URL = re.compile(r"\bhttps?://(?:localhost|127\.[\d.]+|\[::1\]):(\d{1,5})\b")
_PATH = re.compile(r"socket \"(/[^\"]+)\"")
_MAX_TEXT = 10_000
_LOOPBACK = ("127.", "::1", "0.0.0.0", "::")


def target_of(error: BaseException) -> str | None:
    """Return the port or the path of the Unix socket to which a connection was refused; "" if it is
    not known, None if the exception is another one.
    """
    text = _text(error)
    if not isinstance(error, ConnectionRefusedError):
        if not any(message in text.lower() for message in _MESSAGES):
            return None
        return _in_text(text)
    addresses = (_address(value) for _name, value in local_variables(error))
    return next(filter(None, addresses), "") or _in_text(text)


def port_of_browser(error: BaseException) -> str | None:
    """Return the loopback port to which a browser could not connect, if a process here listens on
    it; None if not, or if the exception is another one.

    Called in the test's process: the browser has looked for the server in another container's
    loopback, or in the host's.
    """
    text = _text(error)
    if not _BROWSER_MESSAGE.search(text) or not (match := _URL.search(text)):
        return None
    is_here = any(str(one.port) == match[1] for one in sockets.all_listening())
    return match[1] if is_here else None


def _text(error: BaseException) -> str:
    with suppress(Exception):  # an object of the suite's
        text = str(error)[:_MAX_TEXT]
        if isinstance(error, CalledProcessError):
            for output in (error.stderr, error.stdout):
                shown = os.fsdecode(output) if isinstance(output, bytes) else output or ""
                text += f"\n{shown[-_MAX_TEXT:]}"
        return text
    return ""


def _in_text(text: str) -> str:
    if match := _PATH.search(text):
        return match[1]
    match = _PORT.search(text)
    return (match[1] or match[2]) if match else ""


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


def describe_browser(port: str, *, has_own_loopback: bool) -> list[str]:
    """Return the hint for a browser that could not connect to a port on which the test listened."""
    if not has_own_loopback:
        return []
    hint = (
        f"The browser was refused at port {printable(port)}, although a process inside listens on "
        "it: the browser runs outside, started by a fixture with a higher scope, and the container "
        "has a loopback of its own. Start the browser in a function-scoped fixture, which runs "
        'inside; or set scope= ("module", ...), with which fixtures of that scope run inside too; '
        'or use network="host".'
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
