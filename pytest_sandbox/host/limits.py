"""Limits: which controllers obey this process, and what makes the others do so."""

from __future__ import annotations

import errno
from functools import cache
from typing import TYPE_CHECKING

from pytest_sandbox.errors import UnsupportedError
from pytest_sandbox.linux import cgroup, sysctl
from pytest_sandbox.settings.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.host.trial import Trial

__all__ = [
    "LIMITS",
    "MORE",
    "remedy_for",
    "remedy_for_cgroup",
    "remedy_for_pressure",
    "remedy_of",
    "trier",
    "trier_of",
    "try_cgroup",
    "try_delegation",
    "try_pressure",
]

#: The setting, the controller that holds it (v2's name), and what it is.
LIMITS = (
    ("memory", "memory", "hard cap; a kill for memory that is told as one"),
    ("cpus", "cpu", "CPU time per wall time"),
    ("cpuset", "cpuset", "CPUs that may be used"),
    ("pids_limit", "pids", "processes and threads; a fork bomb ends with its test"),
)
_SOME_MEMORY = 64 << 20
#: More limits: the name of the row, what it is, what is asked for to try it, and what is seen where
#: it is taken, or is not.
MORE = (
    (
        "memory_swap",
        "memory plus swap",
        Settings(memory=_SOME_MEMORY, memory_swap=_SOME_MEMORY),
        "swap is counted with memory",
        "memory is not limited, or swap not counted",
    ),
    (
        "memory_high",
        "memory over which it is slowed down",
        Settings(memory_high=_SOME_MEMORY),
        "memory.high obeys",
        "memory.high does not obey",
    ),
    (
        "device rates",
        "device_read_bps and the like: how fast a disk is used",
        Settings(device_read_bps={"/dev": 2}),
        "the block controller obeys",
        "the block controller does not obey",
    ),
)


@cache
def _hierarchy() -> cgroup.Hierarchy:
    return cgroup.find_hierarchy()


def try_cgroup() -> str:
    """Find the hierarchy in force, and a place for groups of ours in it."""
    hierarchy = _hierarchy()
    if not hierarchy.version:
        raise OSError(errno.ENODEV, "no cgroup file system is mounted")
    if not hierarchy.controllers:
        raise OSError(
            errno.EACCES, f"cgroup v{hierarchy.version}, in which this process may make no groups"
        )
    return f"cgroup v{hierarchy.version}: {' '.join(sorted(hierarchy.controllers))}"


def try_delegation() -> str:
    """See whether this process may have groups with all the usual limits."""
    hierarchy = _hierarchy()
    lacking = [
        controller
        for _key, controller, _use in LIMITS
        if controller not in hierarchy.controllers and controller != "cpuset"
    ]
    if lacking:
        raise OSError(
            errno.EACCES, f"no group with {', '.join(lacking)} has been given to this process"
        )
    return "this process's own groups have memory, cpu and pids"


def remedy_for_cgroup(_trial: Trial) -> str:
    """Return what gives this process groups of its own, with limits."""
    return _hierarchy().remedy("memory")


def trier(controller: str) -> Callable[[], str]:
    """Return what sees whether a controller obeys."""

    def do() -> str:
        if controller not in _hierarchy().controllers:
            raise OSError(errno.EACCES, f"the controller {controller} does not obey this process")
        return f"the controller {controller} obeys"

    return do


def remedy_for(controller: str) -> Callable[[Trial], str]:
    """Return what makes that controller obey."""
    return lambda _trial: _hierarchy().remedy(controller)


def trier_of(wanted: Settings, found: str, lacking: str) -> Callable[[], str]:
    """Return what sees whether these limits would be refused."""

    def do() -> str:
        try:
            _hierarchy().require(wanted)
        except UnsupportedError as error:
            raise OSError(errno.EOPNOTSUPP, lacking) from error
        return found

    return do


def remedy_of(wanted: Settings) -> Callable[[Trial], str]:
    """Return what helps where these limits are refused."""

    def remedy(_trial: Trial) -> str:
        try:
            _hierarchy().require(wanted)
        except UnsupportedError as error:
            return error.remedy
        return ""

    return remedy


def try_pressure() -> str:
    """See whether the kernel counts for how long processes stand still."""
    if _hierarchy().version != 2:
        raise OSError(errno.EOPNOTSUPP, "cgroup v2 alone counts it for each group")
    if not sysctl.has_pressure():
        raise OSError(errno.EOPNOTSUPP, "the kernel does not count it")
    return "the kernel counts it"


def remedy_for_pressure(_trial: Trial) -> str:
    """Return what makes the kernel count it."""
    return (
        "Use cgroup v2, and a kernel with CONFIG_PSI, booted with psi=1 where that is not its "
        "default."
    )
