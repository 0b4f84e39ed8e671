"""Find the cgroup hierarchies that are mounted, and the calling process's cgroup in each.

See cgroups(7) for /proc/PID/cgroup and proc_pid_mountinfo(5) for the mounts.
"""

from __future__ import annotations

from dataclasses import dataclass

from pytest_sandbox.linux import mountinfo

__all__ = ["Mount", "parse_mounts", "parse_own"]

#: The v1 controllers that are used; the other mount options (xattr, name=systemd) are none.
_CONTROLLERS = frozenset({"memory", "cpu", "cpuacct", "cpuset", "pids", "blkio", "freezer"})


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount of a hierarchy: ``root`` is the cgroup that is visible at ``point``."""

    version: int
    root: str
    point: str
    controllers: frozenset[str]
    writable: bool

    def directory(self, cgroup: str) -> str | None:
        """Return the directory of a path of /proc/self/cgroup; None if this mount does not show it.

        The path starts with ``/..`` if the cgroup is outside of the caller's cgroup namespace
        (cgroup_namespaces(7)).
        """
        root = self.root.rstrip("/")
        if cgroup.startswith("/.."):
            return None
        if cgroup != root and not cgroup.startswith(f"{root}/"):
            return None
        return (self.point + cgroup.removeprefix(root)).rstrip("/")


def parse_mounts(data: bytes) -> tuple[Mount, ...]:
    """Return the cgroup mounts in the content of /proc/PID/mountinfo."""
    mounts = []
    for entry in mountinfo.parse(data):
        if entry.fstype in {"cgroup", "cgroup2"}:
            is_v1 = entry.fstype == "cgroup"
            controllers = entry.super_options & _CONTROLLERS if is_v1 else frozenset()
            writable = "ro" not in entry.options | entry.super_options
            mounts.append(Mount(1 if is_v1 else 2, entry.root, entry.point, controllers, writable))
    return tuple(mounts)


def parse_own(text: str) -> dict[str, str]:
    """Return the cgroup by controller from the content of /proc/PID/cgroup (cgroups(7)).

    Version 2 has the key "". A cgroup's name may contain any character but a newline.
    """
    own = {}
    for line in filter(None, text.split("\n")):
        _hierarchy_id, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    return own
