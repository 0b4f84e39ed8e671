"""The values of a network: its name, its subnet, its faults."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.container.fault_values import FaultValues
from pytest_sandbox.errors import SettingsError
from pytest_sandbox.settings import parsers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from ipaddress import IPv4Network

__all__ = [
    "NAME_FORM",
    "SUBNET",
    "check_unused",
    "is_name",
    "read_aliases",
    "read_fault",
    "read_subnet",
]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
NAME_FORM: Final = 'letters, digits, "_", "." and "-", with a letter or a digit first'
SUBNET: Final = "172.30.0.0/24"
_SUBNET_FORM: Final = (
    f'an IPv4 network of 4 addresses or more that is not loopback or multicast, such as "{SUBNET}"'
)


def read_fault(given: object, keywords: Mapping[str, Any]) -> tuple[tuple[str, ...], FaultValues]:
    """Return an item of ``faults``. Raises :class:`SettingsError`."""
    names = given if isinstance(given, tuple) else (given,)
    if len(set(names)) not in {1, 2} or not all(map(is_name, names)):
        raise SettingsError(
            "faults", given, 'the host name of a container, or a pair ("app", "db")'
        )
    if keywords.get("reset"):
        raise SettingsError("reset", True, "a fault at run time; call net.fault(..., reset=True)")
    return names, FaultValues.read(keywords)


def read_aliases(given: Iterable[str]) -> tuple[str, ...]:
    """Return further names of a container. Raises :class:`SettingsError`."""
    try:
        found = parsers.hostname(given) if given else ()
    except parsers.RefusedError:
        form = "host names by RFC 1123 of at most 63 characters each"
        raise SettingsError("aliases", given, form) from None
    return (found,) if isinstance(found, str) else found


def check_unused(names: Iterable[str], used: Mapping[str, str], network: str) -> None:
    """Raise :class:`SettingsError` for a name that a container on a network has; case does not
    matter. ``used`` has the address of each name.
    """
    taken = {**{name.lower(): address for name, address in used.items()}, "localhost": "127.0.0.1"}
    for name in names:
        if address := taken.get(name.lower()):
            form = f"a name that is not used on the network {network}; {address} has it"
            raise SettingsError("hostname", name, form)


def is_name(value: object) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def read_subnet(value: Any) -> IPv4Network:
    from ipaddress import IPv4Network

    try:
        found = IPv4Network(value) if isinstance(value, str | IPv4Network) else None
    except ValueError:
        found = None
    if found is None or found.prefixlen > 30 or found.prefixlen < 8 or _is_special(found):
        raise SettingsError("subnet", value, _SUBNET_FORM)
    return found


def _is_special(network: IPv4Network) -> bool:
    """Return whether a device must not have these addresses: "this network", loopback, multicast,
    reserved (RFC 6890).
    """
    return (
        network.network_address.packed[0] == 0
        or network.is_loopback
        or network.is_multicast
        or network.is_reserved
    )
