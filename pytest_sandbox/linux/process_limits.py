"""Resource limits and the OOM score of a process, as calls of a batch.

See getrlimit(2), prlimit(2) and proc_pid_oom_score_adj(5).
"""

from __future__ import annotations

import resource
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_sandbox.linux.syscall_batch import SyscallBatch

__all__ = [
    "add_oom_score_adj",
    "add_raised_hard_limits",
    "add_ulimits",
    "describe_hard_limits_to_raise",
]

_RLIMIT_LOCKS = 10  # <asm-generic/resource.h>; Python's resource module does not have it
_OOM_SCORE_ADJ_MIN = b"-1000"  # <linux/oom.h>


def add_ulimits(batch: SyscallBatch, step: str, ulimits: Iterable[tuple[str, int, int]]) -> None:
    """Append setting the resource limits ``(name, soft, hard)`` of the process."""
    for name, soft, hard in ulimits:
        batch.add(step, "prlimit64", 0, _number(name), struct.pack("qq", soft, hard), None)


def add_raised_hard_limits(
    batch: SyscallBatch, step: str, ulimits: Iterable[tuple[str, int, int]]
) -> None:
    """Append raising the hard limits of the process to those that its payloads request."""
    for name, hard, current_soft, _current_hard in _hard_limits_to_raise(ulimits):
        limits = struct.pack("qq", current_soft, hard)
        batch.add(step, "prlimit64", 0, _number(name), limits, None)


def describe_hard_limits_to_raise(ulimits: Iterable[tuple[str, int, int]]) -> str:
    """Return which of these are over the hard limits of the process, for an error."""
    return "; ".join(
        f"{name}={hard} is over the hard limit of {current_hard}, which may not be raised"
        for name, hard, _current_soft, current_hard in _hard_limits_to_raise(ulimits)
    )


def _hard_limits_to_raise(
    ulimits: Iterable[tuple[str, int, int]],
) -> Iterator[tuple[str, int, int, int]]:
    """Yield the name, the requested hard limit, and the current soft and hard limit."""
    for name, _soft, hard in ulimits:
        current_soft, current_hard = resource.getrlimit(_number(name))
        if current_hard != resource.RLIM_INFINITY and (
            hard == resource.RLIM_INFINITY or hard > current_hard
        ):
            yield name, hard, current_soft, current_hard


def add_oom_score_adj(batch: SyscallBatch, step: str) -> None:
    """Append protecting the process from the OOM killer, if the caller has CAP_SYS_RESOURCE."""
    batch.write(step, b"/proc/self/oom_score_adj", _OOM_SCORE_ADJ_MIN, go_on=True)


def _number(name: str) -> int:
    """Return the RLIMIT_* number of a resource limit by docker's name, such as ``nofile``."""
    number: int = getattr(resource, f"RLIMIT_{name.upper()}", _RLIMIT_LOCKS)
    return number
