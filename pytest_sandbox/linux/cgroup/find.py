"""Find the cgroup hierarchy that limits containers on this host."""

from __future__ import annotations

from pytest_sandbox.linux import mountinfo
from pytest_sandbox.linux.cgroup.base import Hierarchy
from pytest_sandbox.linux.cgroup.interface_files import read
from pytest_sandbox.linux.cgroup.mounts import parse_mounts, parse_own

__all__ = ["find_hierarchy"]


def find_hierarchy(
    mounts_path: str = mountinfo.PATH, own_path: str = "/proc/self/cgroup"
) -> Hierarchy:
    """Return the v1 hierarchy if v1 has controllers (also on a hybrid host), else the v2 one.

    Without any cgroup mount it is one that supports no limits.
    """
    mounts, own = parse_mounts(mountinfo.read(mounts_path)), parse_own(read(own_path))
    # Imported here because a host uses one version only.
    if any(mount.controllers & {"memory", "cpu", "pids"} for mount in mounts):
        from pytest_sandbox.linux.cgroup.v1 import HierarchyV1

        return HierarchyV1(mounts, own)
    unified = next((mount for mount in mounts if mount.version == 2), None)
    if unified is None:
        return Hierarchy()
    from pytest_sandbox.linux.cgroup.v2 import HierarchyV2

    return HierarchyV2(unified, own.get("", "/"))
