"""What a container could not connect to, for the error of a service that is not ready."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.printable import printable

if TYPE_CHECKING:
    from pytest_sandbox.container.handle import Handle

__all__ = ["describe"]

_SHOWN: Final = 3
#: What to do, by a part of the forwarder's reason (launcher/egress.py).
_REMEDIES: Final = {
    "not allowed": "add it to network=",
    "no name server": "correct the name servers of this host, or list an address",
    "does not exist": "correct the name",
    "address of this host": "list its address in network=, too",
}


def describe(handle: Handle) -> str:
    """Return the connections that the forwarder has refused or could not make, with remedies; an
    empty text if there are none.
    """
    if handle.egress is None:
        return ""
    try:
        found = handle.egress.attempts()
    except (SandboxError, OSError):  # it has ended
        return ""
    if not found:
        return ""
    allowed = str(handle.settings.network).split(",")
    more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    shown = ", ".join(map(_describe, found[:_SHOWN]))
    return f"; with network={allowed!r} it has not reached {shown}{more}"


def _describe(attempt: dict[str, Any]) -> str:
    port = "" if attempt["port"] is None else f":{attempt['port']}"
    reason = attempt["reason"]
    remedy = next((f": {text}" for part, text in _REMEDIES.items() if part in reason), "")
    return f"{printable(attempt['host'])}{port} ({printable(reason)}{remedy})"
