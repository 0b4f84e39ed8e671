"""Read and write kernel parameters by their names in sysctl(8) (proc_sys(5))."""

from __future__ import annotations

import os

__all__ = ["has_pressure", "value", "write"]


def value(name: str) -> str | None:
    """Return the value of a parameter, such as ``user.max_user_namespaces``; None if unknown."""
    try:
        with open(f"/proc/sys/{name.replace('.', '/')}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return None


def write(name: str, value: str) -> None:
    """Set a parameter; raises OSError if it does not exist or the caller may not write it."""
    with open(f"/proc/sys/{name.replace('.', '/')}", "w", encoding="ascii") as file:
        file.write(value)


def has_pressure() -> bool:
    """Return whether the kernel has pressure stall information (accounting/psi.rst)."""
    return os.path.exists("/proc/pressure/cpu")
