"""The client's side of the forwarder of outgoing connections (launcher/egress.py)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from pytest_sandbox.container.relay import Egress
from pytest_sandbox.errors import SettingsError
from pytest_sandbox.linux.signals import Deferred

if TYPE_CHECKING:
    from pytest_sandbox.container.handle import Handle

__all__ = ["connect"]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all

_PROXY: Final = ("https_proxy", "HTTPS_PROXY")
_NO_PROXY: Final = ("no_proxy", "NO_PROXY")
_DEFAULT_PORT: Final = 80


def connect(handle: Handle) -> None:
    """Let a container connect to what its settings allow; a new init keeps the forwarder.

    Raises :class:`SettingsError` for an invalid proxy of the environment, and :class:`SetupError`.
    """
    if handle.egress is not None:
        handle.egress.enter(handle.pidfd)
        return
    message = {
        "op": "open",
        "destinations": handle.settings.network,
        "proxy": _proxy(),
        "no_proxy": [one.strip().lower() for one in _first(_NO_PROXY)[1].split(",") if one.strip()],
    }
    _answer, fds = handle.launcher.request({"op": "relay", "kind": "connections"})
    with fds, Deferred():
        handle.egress = Egress(fds.take())
    handle.egress.ask(message, [handle.pidfd])


def _first(names: tuple[str, ...]) -> tuple[str, str]:
    """Return the first variable that is set, and its value."""
    return next(
        ((name, os.environ[name]) for name in names if os.environ.get(name)), (names[0], "")
    )


def _proxy() -> tuple[str, int, str] | None:
    """Return host, port and credentials of the environment's proxy; None without one."""
    from urllib.parse import unquote, urlsplit

    name, text = _first(_PROXY)
    if not text:
        return None
    try:
        url = urlsplit(text if "://" in text else f"http://{text}")
        host, port = url.hostname, url.port or _DEFAULT_PORT
    except ValueError:
        host = None
    if not host or url.scheme != "http" or not host.isascii():
        raise SettingsError(
            name, text, "http://[USER:PASSWORD@]HOST[:PORT], or an empty value for no proxy"
        )
    credentials = f"{unquote(url.username)}:{unquote(url.password or '')}" if url.username else ""
    return host, port, credentials
