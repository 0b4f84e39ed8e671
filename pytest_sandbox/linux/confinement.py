"""What is around this process and says no where the kernel would not: a security module's profile,
or a stand-in for the kernel itself.
"""

from __future__ import annotations

import os

__all__ = ["is_gvisor", "profile"]

#: What gVisor's kernel has answered to uname(2) since it was published, whatever release it stands
#: in for.
_GVISOR = "#1 SMP Sun Jan 10 15:06:54 PST 2016"


def is_gvisor() -> bool:
    """Whether the kernel is gVisor's (runsc): by the file that it shows where it is told to, by its
    release, or by its version.
    """
    system = os.uname()
    return (
        os.path.exists("/proc/gvisor/kernel_is_gvisor")
        or "gvisor" in system.release.lower()
        or system.version == _GVISOR
    )


def profile() -> str:
    """Return the name of the AppArmor profile that confines this process; empty where none does
    (apparmor(7)).
    """
    try:
        with open("/proc/self/attr/apparmor/current", encoding="utf-8", errors="replace") as file:
            return _confining(file.read())
    except OSError:  # no AppArmor
        return ""


def _confining(text: str) -> str:
    """Read ``NAME (MODE)``: a profile that only complains confines nobody."""
    name, _, mode = text.strip().rpartition(" ")
    return name if mode == "(enforce)" else ""
