"""CPU lists, in the format of cpuset(7)."""

from __future__ import annotations

import os

__all__ = ["online", "parse"]


def online() -> str:
    """Return the list of CPUs that are online, such as "0-3,8"."""
    try:
        with open("/sys/devices/system/cpu/online", encoding="ascii") as file:
            return file.read().strip()
    except OSError:  # /sys is not mounted
        return f"0-{(os.cpu_count() or 1) - 1}"


def parse(text: str) -> set[int]:
    """Return the CPU numbers in a list such as "0-3,8"."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found
