"""CPU lists, in the format of cpuset(7), and the CPUs that this process may use."""

from __future__ import annotations

import math
import os

from pytest_sandbox.linux.cgroup.interface_files import read, read_number
from pytest_sandbox.linux.cgroup.own import own_directories

__all__ = ["online", "parse", "usable"]


def usable() -> int:
    """Return how many CPUs this process may use, by its affinity (sched_setaffinity(2)) and the
    CPU quotas of its cgroup and those above it; a part of a CPU counts as one.
    """
    shares = (_bandwidth(directory, version) for version, directory in own_directories("cpu"))
    quotas = [quota / period for quota, period in shares if quota > 0 and period > 0]
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.ceil, quotas)]))


def _bandwidth(directory: str, version: int) -> tuple[int, int]:
    """Return quota and period in microseconds; the quota is -1 without a limit."""
    if version == 1:
        numbers = (read_number(f"{directory}/cpu.cfs_{name}_us") for name in ("quota", "period"))
        quota, period = (-1 if number is None else number for number in numbers)
        return quota, period
    try:
        quota_text, period_text = read(f"{directory}/cpu.max").split()
    except FileNotFoundError:
        return -1, -1
    return (-1 if quota_text == "max" else int(quota_text)), int(period_text)


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
