"""Limits: which controllers obey this process, and what makes the others do so."""

from __future__ import annotations

import errno
from functools import cache
from typing import TYPE_CHECKING

from pytest_sandbox.linux import cgroup, sysctl

if TYPE_CHECKING:
    from pytest_sandbox.host.trial import Trial

__all__ = ["remedy_for_cgroup", "remedy_for_pressure", "try_cgroup", "try_pressure"]


@cache
def _hierarchy() -> cgroup.Hierarchy:
    return cgroup.Hierarchy.find()


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


def remedy_for_cgroup(_trial: Trial) -> str:
    """Return what gives this process groups of its own, with limits."""
    return _hierarchy().remedy("memory")


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
