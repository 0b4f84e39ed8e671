"""The limits that a container's cgroup enforces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_sandbox.settings.settings import Settings

__all__ = ["CgroupLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupLimits:
    """The limits of one cgroup; None is no limit.

    ``memory``, ``memory_high`` and ``swap_limit`` (memory plus swap) are bytes, ``cpus`` is a
    count, ``cpuset`` the kernel's list format (cpuset(7)). ``device_rates`` are the setting's key,
    the path of a block device, and bytes or operations per second.
    """

    memory: int | None = None
    swap_limit: int | None = None
    memory_high: int | None = None
    cpus: float | None = None
    cpuset: str | None = None
    pids_limit: int | None = None
    device_rates: tuple[tuple[str, str, int], ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> CgroupLimits:
        """Return the limits that these settings ask for."""
        return cls(
            memory=settings.memory,
            swap_limit=settings.swap_limit,
            memory_high=settings.memory_high,
            cpus=settings.cpus,
            cpuset=settings.cpuset,
            pids_limit=settings.pids_limit,
            device_rates=settings.device_rates(),
        )
