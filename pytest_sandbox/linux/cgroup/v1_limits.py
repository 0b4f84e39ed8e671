"""Write a container's limits to cgroup v1 directories.

See memory.rst and blkio-controller.rst in Documentation/admin-guide/cgroup-v1/ of the kernel, and
Documentation/scheduler/sched-bwc.rst for CPU time.
"""

from __future__ import annotations

import contextlib
import errno
import math
from typing import TYPE_CHECKING

from pytest_sandbox.errors import UnsupportedError
from pytest_sandbox.linux.cgroup.base import PERIOD
from pytest_sandbox.linux.cgroup.interface_files import (
    device_number,
    read,
    read_number,
    refused_rate,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_sandbox.linux.cgroup_limits import CgroupLimits

__all__ = ["set_cpus", "set_memory", "set_rates"]

#: The file of each device rate.
_RATES = {
    "device_read_bps": "blkio.throttle.read_bps_device",
    "device_write_bps": "blkio.throttle.write_bps_device",
    "device_read_iops": "blkio.throttle.read_iops_device",
    "device_write_iops": "blkio.throttle.write_iops_device",
}


def set_rates(
    directory: str, before: Iterable[tuple[str, str, int]], rates: Iterable[tuple[str, str, int]]
) -> None:
    """Set device rates (key, path, rate), after removing those that were set before.

    A rate of 0 removes the limit of a device (blkio-controller.rst).
    """
    for key, path, rate in [*((key, path, 0) for key, path, _rate in before), *rates]:
        device = device_number(path)
        try:
            write(f"{directory}/{_RATES[key]}", f"{device} {rate}")
        except OSError as error:
            raise refused_rate(key, path, rate, error) from error


def set_memory(directory: str, before: CgroupLimits, limits: CgroupLimits) -> None:
    """Set the limits on memory, and on the sum of memory and swap.

    The kernel rejects a memory limit above that of the sum at any moment, so the sum is written
    first if the limits grow, and last if they shrink.
    """
    wanted = limits.memory, limits.swap_limit
    if wanted == (before.memory, before.swap_limit):
        return
    writes = list(
        zip(("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"), wanted, strict=True)
    )
    if _finite(limits.memory) > _finite(before.swap_limit):
        writes.reverse()
    for name, value in writes:
        _write_memory(directory, name, -1 if value is None else value)
    _set_tcp_buffers(directory, limits.memory)


def _finite(limit: int | None) -> float:
    return math.inf if limit is None else limit


def _set_tcp_buffers(directory: str, memory: int | None) -> None:
    """Limit TCP socket buffers, which v1 does not count as memory (memory.rst, 2.7.1)."""
    # A kernel without CONFIG_INET or CONFIG_MEMCG_KMEM does not have the file.
    with contextlib.suppress(FileNotFoundError):
        write(f"{directory}/memory.kmem.tcp.limit_in_bytes", -1 if memory is None else memory)


def _write_memory(directory: str, name: str, value: int) -> None:
    try:
        write(f"{directory}/{name}", value)
    except FileNotFoundError:
        # The kernel does not count swap: swappiness 0 keeps anonymous pages of this cgroup out of
        # it (memory.rst, 5.3).
        default = read("/proc/sys/vm/swappiness").strip()
        write(f"{directory}/memory.swappiness", 0 if value > 0 else default)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        used = read_number(f"{directory}/memory.usage_in_bytes")
        raise UnsupportedError(
            f"memory={value}", f"The container already uses {used} bytes: give it more."
        ) from error


def set_cpus(directory: str, cpus: float | None) -> None:
    """Set the limit on CPU time."""
    quota = -1 if cpus is None else round(cpus * PERIOD)
    try:
        write(f"{directory}/cpu.cfs_quota_us", quota)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # A child may not have more than its parent (sched-bwc.rst, "Hierarchical considerations").
        raise UnsupportedError(
            f"cpus={cpus}",
            "The cgroup that the tests run in has fewer: ask for fewer, or raise its own.",
        ) from error
