"""Detect what denies operations that Linux would allow: gVisor, or an AppArmor profile.

See apparmor(7).
"""

from __future__ import annotations

import os

__all__ = ["apparmor_profile", "is_gvisor"]

#: The version that gVisor's kernel returns from uname(2), whatever Linux release it emulates.
_GVISOR_VERSION = "#1 SMP Sun Jan 10 15:06:54 PST 2016"


def is_gvisor() -> bool:
    """Return whether the kernel is gVisor's (runsc).

    Its configuration decides whether it shows a file in /proc and which release it reports.
    """
    system = os.uname()
    return (
        os.path.exists("/proc/gvisor/kernel_is_gvisor")
        or "gvisor" in system.release.lower()
        or system.version == _GVISOR_VERSION
    )


def apparmor_profile() -> str:
    """Return the name of the AppArmor profile that confines this process; empty if none does."""
    try:
        with open("/proc/self/attr/apparmor/current", encoding="utf-8", errors="replace") as file:
            return _parse_profile(file.read())
    except OSError:  # a kernel without AppArmor
        return ""


def _parse_profile(text: str) -> str:
    """Return NAME of ``NAME (MODE)``; empty in complain mode, which denies nothing."""
    name, _, mode = text.strip().rpartition(" ")
    return name if mode == "(enforce)" else ""
