"""Control groups: one interface for cgroup v1 and v2.

:func:`find_hierarchy` returns the hierarchy of this host; ``hierarchy.session(name)`` creates a
directory for a launcher; ``session.create(name)`` creates the :class:`Cgroup` of a container.

Sources: cgroups(7), and Documentation/admin-guide/cgroup-v1/ and cgroup-v2.rst of the kernel.
"""

from __future__ import annotations

from pytest_sandbox.linux.cgroup.base import PREFIX, Cgroup, Hierarchy, Session
from pytest_sandbox.linux.cgroup.directories import destroy, lock_unowned, remove_unowned, walk
from pytest_sandbox.linux.cgroup.find import find_hierarchy
from pytest_sandbox.linux.cgroup.interface_files import read
from pytest_sandbox.linux.cgroup.mounts import Mount, parse_mounts, parse_own

__all__ = [
    "PREFIX",
    "Cgroup",
    "Hierarchy",
    "Mount",
    "Session",
    "destroy",
    "find_hierarchy",
    "lock_unowned",
    "parse_mounts",
    "parse_own",
    "read",
    "remove_unowned",
    "walk",
]
