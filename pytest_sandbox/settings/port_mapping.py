"""The parser of published ports, in docker's form: ``[[HOST:]HOST_PORT:]PORT[/tcp|/udp]``. See
parsers.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pytest_sandbox.settings.parsers import RefusedError, split_items

__all__ = ["PortMapping", "publish"]

_MAX_PORT = 65535
_MAX_PUBLISHED = 64  # a message has at most 253 descriptors, and a port may take three
_FORM = re.compile(
    r"(?:(?:(?P<host>[0-9.]+|\[[0-9a-fA-F:.]+\]):)?(?P<host_port>[0-9]{0,5}):)?"
    r"(?P<port>[0-9]{1,5})(?:/(?P<protocol>tcp|udp))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A port of the host that leads to a port inside.

    ``host`` is an address of the host, or empty for its loopback. ``host_port`` is None to have
    the same port on the container's own address alone; 0 for any free port.
    """

    host: str
    host_port: int | None
    port: int
    protocol: str = "tcp"

    @property
    def key(self) -> int | str:
        """The port inside: a number for TCP, "53/udp" for UDP."""
        return self.port if self.protocol == "tcp" else f"{self.port}/{self.protocol}"

    def __str__(self) -> str:
        host = f"[{self.host}]:" if ":" in self.host else f"{self.host}:" if self.host else ""
        outer = "" if self.host_port is None else f"{host}{self.host_port}:"
        return f"{outer}{self.port}{'' if self.protocol == 'tcp' else '/udp'}"


def publish(value: object) -> tuple[PortMapping, ...]:
    """Return the published ports, each once."""
    given = [value] if isinstance(value, int) else split_items(value)
    try:
        mappings = tuple(one if isinstance(one, PortMapping) else _parse(one) for one in given)
    except ValueError:
        raise RefusedError from None
    keys = [mapping.key for mapping in mappings]
    if len(keys) != len(set(keys)):
        raise RefusedError(f"each port inside once ({max(keys, key=keys.count)} is repeated)")
    if len(mappings) > _MAX_PUBLISHED:
        raise RefusedError
    return mappings


def _parse(value: object) -> PortMapping:
    """Return the mapping for a text or a number. Raises ValueError."""
    text = str(value) if type(value) is int else value
    found = _FORM.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(value)
    host, host_port = found["host"], found["host_port"]
    if host_port == "" and not host:
        raise ValueError(value)
    return PortMapping(
        _address(host) if host else "",
        None if host_port is None else _port(host_port or "0", least=0),
        _port(found["port"], least=1),
        found["protocol"] or "tcp",
    )


def _address(text: str) -> str:
    """Return an IP address; one of IPv6 is in brackets."""
    from ipaddress import IPv4Address, IPv6Address

    return str(IPv6Address(text[1:-1]) if text.startswith("[") else IPv4Address(text))


def _port(text: str, *, least: int) -> int:
    if not least <= int(text) <= _MAX_PORT:
        raise ValueError(text)
    return int(text)
