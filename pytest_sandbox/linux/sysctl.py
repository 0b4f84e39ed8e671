"""Kernel parameters, by the names that sysctl(8) prints (proc_sys(5)), and what the kernel
counts.
"""

from __future__ import annotations

import os

__all__ = ["has_pressure", "value", "write"]


def value(name: str) -> str | None:
    """Return a parameter's value, such as ``user.max_user_namespaces``'s; None where this kernel
    has none of that name.
    """
    try:
        with open(f"/proc/sys/{name.replace('.', '/')}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return None


def write(name: str, value: str) -> None:
    """Set a parameter.

    Raises :class:`OSError` where it does not exist, or the caller lacks the right.
    """
    with open(f"/proc/sys/{name.replace('.', '/')}", "w", encoding="ascii") as file:
        file.write(value)


def has_pressure() -> bool:
    """Whether this kernel counts for how long processes stand still (accounting/psi.rst)."""
    return os.path.exists("/proc/pressure/cpu")
