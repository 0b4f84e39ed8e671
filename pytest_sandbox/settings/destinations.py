"""The parser of ``network=["pypi.org:443", ...]``: what a container may connect to. See parsers.py.

The canonical value is a text, as of the other kinds of network: the destinations with commas.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self

from pytest_sandbox.settings.parsers import RefusedError, split_items

__all__ = ["OUTSIDE", "Destinations", "is_limited", "network"]

#: Everything that the host reaches.
OUTSIDE: Final = "outside"
_WORDS: Final = ("none", "host", OUTSIDE)
_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME: Final = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
_ADDRESS: Final = re.compile(r"[0-9.]+")
_FORM: Final = (
    '"none", "host", "outside", a list of destinations such as ["pypi.org:443", '
    '"*.example.org:443", "10.0.0.5:5432"], or an object: network=Network()'
)
_MAX_PORT: Final = 65535
_LONGEST_NAME: Final = 253  # RFC 1035


def network(value: object) -> object:
    """Return "none", "host", "outside", or destinations as a text; or a Network, which is
    recognised by its subnet because this package cannot import networks.
    """
    if hasattr(value, "subnet"):
        return value
    if isinstance(value, str) and value in _WORDS:
        return value
    if not isinstance(value, str | list | tuple | set | frozenset):
        raise RefusedError(_FORM)
    if isinstance(value, str) and ":" not in value and "." not in value:
        raise RefusedError(_FORM)
    items = [_destination(item) for item in split_items(value)]
    if not items:
        raise RefusedError(f'{_FORM}; without any destination it is network="none"')
    return ",".join(dict.fromkeys(items))


def _destination(item: object) -> str:
    """Return ``NAME:PORT`` or ``ADDRESS:PORT`` in lower case."""
    if not isinstance(item, str):
        raise RefusedError(_FORM)
    host, colon, port = item.strip().lower().rpartition(":")
    if not colon:
        raise RefusedError(f'NAME:PORT or ADDRESS:PORT; did you mean "{item.strip()}:443"?')
    if "//" in item:
        raise RefusedError(f'NAME:PORT without a scheme or a path, such as "pypi.org:443" ({item})')
    if ":" in host:
        raise RefusedError(f"IPv4 addresses, or names, which may have IPv6 addresses ({item})")
    host = host.rstrip(".")
    if not (_is_address(host) if _ADDRESS.fullmatch(host) else _is_name(host)):
        raise RefusedError(
            f'a host name, one that starts with "*.", or an IPv4 address, before the port ({item})'
        )
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= _MAX_PORT):
        raise RefusedError(f"a port from 1 to {_MAX_PORT} after the colon ({item})")
    return f"{host}:{int(port)}"


def _is_name(text: str) -> bool:
    # No name ends with a number, so that "*.5" is no pattern of addresses.
    return (
        len(text) <= _LONGEST_NAME
        and _NAME.fullmatch(text) is not None
        and not text.rpartition(".")[2].isdigit()
    )


def _is_address(text: str) -> bool:
    from ipaddress import IPv4Address

    try:
        return str(IPv4Address(text)) == text
    except ValueError:
        return False


def is_limited(value: object) -> bool:
    """Return whether connections leave a container through a forwarder: a list, or "outside"."""
    return isinstance(value, str) and value not in {"none", "host"}


@dataclass(frozen=True, slots=True)
class Destinations:
    """What may be connected to; ``is_everything`` for "outside"."""

    exact: frozenset[tuple[str, int]]
    wild: tuple[tuple[str, int], ...]
    is_everything: bool

    @classmethod
    def of(cls, text: str) -> Self:
        """Return the destinations of a canonical value."""
        if text == OUTSIDE:
            return cls(frozenset(), (), is_everything=True)
        split = [item.rpartition(":")[::2] for item in text.split(",")]
        pairs = [(host, int(port)) for host, port in split]
        return cls(
            frozenset(pair for pair in pairs if pair[0][:1] != "*"),
            tuple((host[1:], port) for host, port in pairs if host[:1] == "*"),
            is_everything=False,
        )

    def allow(self, host: str, port: int) -> bool:
        """Return whether a name or an address, in lower case, may be connected to."""
        return (
            self.is_everything
            or self.lists(host, port)
            or any(host.endswith(end) and port == allowed for end, allowed in self.wild)
        )

    def lists(self, host: str, port: int) -> bool:
        """Return whether a name or an address is listed itself, without a wildcard."""
        return (host, port) in self.exact
