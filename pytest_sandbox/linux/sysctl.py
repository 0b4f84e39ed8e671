"""Kernel parameters, by the names that sysctl(8) prints (proc_sys(5))."""

from __future__ import annotations

__all__ = ["value"]


def value(name: str) -> str | None:
    """Return a parameter's value, such as ``user.max_user_namespaces``'s; None where this kernel has none of that name."""
    try:
        with open(f"/proc/sys/{name.replace('.', '/')}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return None
