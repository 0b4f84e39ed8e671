"""Limits: which controllers obey this process, and what makes the others do so."""

from __future__ import annotations

import errno
from functools import cache
from typing import TYPE_CHECKING

from pytest_sandbox.errors import UnsupportedError
from pytest_sandbox.linux import cgroup
from pytest_sandbox.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.host.trial import Trial

__all__ = ["LIMITS", "remedy_for", "remedy_for_cgroup", "remedy_for_swap", "trier", "try_cgroup", "try_delegation", "try_swap"]

#: The setting, the controller that holds it (v2's name), and what it is.
LIMITS = (
    ("memory", "memory", "hard cap; a kill for memory that is told as one"),
    ("cpus", "cpu", "CPU time per wall time"),
    ("cpuset", "cpuset", "CPUs that may be used"),
    ("pids_limit", "pids", "processes and threads; a fork bomb ends with its test"),
)
_SOME_MEMORY = 64 << 20


@cache
def _hierarchy() -> cgroup.Hierarchy:
    return cgroup.Hierarchy.find()


def try_cgroup() -> str:
    """Find the hierarchy in force, and a place for groups of ours in it."""
    hierarchy = _hierarchy()
    if not hierarchy.version:
        raise OSError(errno.ENODEV, "no cgroup file system is mounted")
    if not hierarchy.controllers:
        raise OSError(errno.EACCES, f"cgroup v{hierarchy.version}, in which this process may make no groups")
    return f"cgroup v{hierarchy.version}: {' '.join(sorted(hierarchy.controllers))}"


def try_delegation() -> str:
    """See whether this process may have groups with all the usual limits."""
    hierarchy = _hierarchy()
    lacking = [controller for _key, controller, _use in LIMITS if controller not in hierarchy.controllers and controller != "cpuset"]
    if lacking:
        raise OSError(errno.EACCES, f"no group with {', '.join(lacking)} has been given to this process")
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


def try_swap() -> str:
    """See whether a limit on swap would be refused."""
    try:
        _hierarchy().require(Settings(memory=_SOME_MEMORY, memory_swap=_SOME_MEMORY))
    except UnsupportedError as error:
        raise OSError(errno.EOPNOTSUPP, "memory is not limited, or swap not counted") from error
    return "swap is counted with memory"


def remedy_for_swap(_trial: Trial) -> str:
    """Return what makes the kernel count swap."""
    try:
        _hierarchy().require(Settings(memory=_SOME_MEMORY, memory_swap=_SOME_MEMORY))
    except UnsupportedError as error:
        return error.remedy
    return ""
