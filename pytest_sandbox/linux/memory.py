"""The memory that this process and its children may use: the machine's, or that of their cgroup."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_sandbox.linux.cgroup.interface_files import read, read_number
from pytest_sandbox.linux.cgroup.own import own_directories

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["available", "total"]


def total() -> int:
    """Return the memory of the machine in bytes, or a lower limit of this process's cgroup or one
    above it.
    """
    return min([_meminfo("MemTotal"), *(limit for limit, _used in _limits())])


def available() -> int:
    """Return the bytes that can be used without swapping (proc_meminfo(5), MemAvailable) and within
    the limits of this process's cgroup and those above it.
    """
    return min([_meminfo("MemAvailable"), *(limit - used for limit, used in _limits())])


def _meminfo(name: str) -> int:
    for line in read("/proc/meminfo").splitlines():
        key, _, rest = line.partition(":")
        if key == name:
            return int(rest.removesuffix("kB")) << 10
    raise LookupError(name)


def _limits() -> Iterator[tuple[int, int]]:
    """Yield limit and usage of each visible cgroup that this process is in, upwards."""
    for version, directory in own_directories("memory"):
        names = ("limit_in_bytes", "usage_in_bytes") if version == 1 else ("max", "current")
        limit, used = (read_number(f"{directory}/memory.{name}") for name in names)
        if limit is not None and used is not None:
            yield limit, used
