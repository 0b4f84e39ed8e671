"""Limits: which controllers obey this process, and what makes the others do so."""

from __future__ import annotations

import errno
from functools import cache
from typing import TYPE_CHECKING

from pytest_sandbox.linux import cgroup, sysctl

if TYPE_CHECKING:
    from pytest_sandbox.host.trial import Trial

__all__ = ["hierarchy", "remedy_for_cgroup", "remedy_for_pressure", "try_cgroup", "try_pressure"]


@cache
def hierarchy() -> cgroup.Hierarchy:
    """Return where this process's cgroups are; an empty hierarchy without /proc."""
    try:
        return cgroup.find_hierarchy()
    except OSError:
        return cgroup.Hierarchy()


def try_cgroup() -> str:
    """Find the hierarchy in force, and a place for groups of ours in it."""
    found = hierarchy()
    if not found.version:
        raise OSError(errno.ENODEV, "no cgroup file system is mounted")
    if not found.controllers:
        raise OSError(
            errno.EACCES, f"cgroup v{found.version}, in which this process may make no groups"
        )
    return f"cgroup v{found.version}: {' '.join(sorted(found.controllers))}"


def remedy_for_cgroup(_trial: Trial) -> str:
    """Return what gives this process groups of its own, with limits."""
    return hierarchy().remedy("memory")


def try_pressure() -> str:
    """See whether the kernel counts for how long processes stand still."""
    if hierarchy().version != 2:
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
