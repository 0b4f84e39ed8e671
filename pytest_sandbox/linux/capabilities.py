"""Names and bits of capabilities, and docker's rules for --cap-add and --cap-drop.

See capabilities(7).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_sandbox.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ALL", "DOCKER_DEFAULT", "NAMES", "bit", "mask", "names", "resolve", "supported"]

# <linux/capability.h>, in numeric order.
_IN_ORDER = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT
SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE
AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ
PERFMON BPF CHECKPOINT_RESTORE
"""
NAMES = tuple(_IN_ORDER.split())
_NUMBERS = {name: number for number, name in enumerate(NAMES)}
_EVERY = "ALL"
ALL = (1 << len(NAMES)) - 1


def bit(name: str) -> int:
    """Return the mask of a capability: ``"NET_ADMIN"``, ``"cap_net_admin"``, or ``"ALL"``.

    Raises KeyError for an unknown name.
    """
    short = name.upper().removeprefix("CAP_")
    return ALL if short == _EVERY else 1 << _NUMBERS[short]


def mask(wanted: Iterable[str], *, key: str = "capabilities") -> int:
    """Return the mask of some names; raises SettingsError of the setting ``key``."""
    result = 0
    for name in wanted:
        try:
            result |= bit(name)
        except (KeyError, AttributeError):
            raise SettingsError(
                key,
                name,
                f"ALL, or a name of capabilities(7) with or without CAP_: {' '.join(NAMES)}",
            ) from None
    return result


def names(capabilities: int) -> tuple[str, ...]:
    """Return the names in a mask as docker prints them (``CAP_CHOWN``), in numeric order."""
    return tuple(f"CAP_{name}" for number, name in enumerate(NAMES) if capabilities >> number & 1)


# Moby's daemon/pkg/oci/caps/defaults.go.
_DOCKER = (
    "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP "
    "NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE"
)
DOCKER_DEFAULT = mask(_DOCKER.split())


@cache
def supported() -> int:
    """Return the mask of the capabilities of this kernel (/proc/sys/kernel/cap_last_cap)."""
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text(encoding="ascii"))
    return (1 << last + 1) - 1


def resolve(
    cap_add: Iterable[str] = (), cap_drop: Iterable[str] = (), *, privileged: bool = False
) -> int:
    """Return the mask of docker's ``--cap-add``, ``--cap-drop`` and ``--privileged``.

    Adding ``ALL`` gives all but those dropped by name; dropping ``ALL`` leaves those added.
    Otherwise capabilities are dropped from the default set first, and then added. Raises
    SettingsError for an unknown name.
    """
    added, dropped = list(cap_add), list(cap_drop)
    add, drop = mask(added, key="cap_add"), mask(dropped, key="cap_drop")
    if privileged:
        return ALL
    if _has_all(added):
        return ALL & ~mask(name for name in dropped if not _has_all([name]))
    return add if _has_all(dropped) else DOCKER_DEFAULT & ~drop | add


def _has_all(wanted: Iterable[str]) -> bool:
    return any(name.upper().removeprefix("CAP_") == _EVERY for name in wanted)
