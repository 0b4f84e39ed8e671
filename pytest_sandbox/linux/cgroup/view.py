"""What a container has at /sys/fs/cgroup: its own cgroup, read-only, in the host's version.

Programs that adapt to their limits (the JVM, Go, node, joblib) read it there. A bind mount of the
container's directory shows neither its parents nor other containers, and has no ``release_agent``,
which only the root of a version 1 hierarchy has. In the container's cgroup namespace
/proc/self/mountinfo says that the directory is the root of the hierarchy (cgroup_namespaces(7)).
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from pytest_sandbox.linux import syscall as sc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.linux.syscall_batch import SyscallBatch

__all__ = ["ShownCgroup", "add_view", "make_points"]

_POINT = "/sys/fs/cgroup"
_STEP = "show cgroups"
_ATTRIBUTES = sc.mount_attributes(
    sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV | sc.MOUNT_ATTR_NOEXEC
)


class ShownCgroup(NamedTuple):
    """A directory of a cgroup file system, and its name below /sys/fs/cgroup inside.

    ``name`` is empty for version 2, which is mounted at /sys/fs/cgroup itself. ``links`` are other
    names of it: controllers that are mounted together, as ``cpu,cpuacct``.
    """

    directory: str
    name: str = ""
    links: tuple[str, ...] = ()


def make_points(directory: str, shown: Sequence[ShownCgroup]) -> None:
    """Create a directory with a mount point and links for each cgroup of version 1, if it does not
    exist.

    All containers of a session have it at /sys/fs/cgroup, which is faster than a tmpfs for each.
    """
    for one in shown:
        os.makedirs(f"{directory}/{one.name}", mode=0o755, exist_ok=True)
        for link in one.links:
            with suppress(FileExistsError):
                os.symlink(one.name, f"{directory}/{link}")


def add_view(batch: SyscallBatch, root: str, points: str, shown: Sequence[ShownCgroup]) -> None:
    """Append mounting these cgroups below ``root``; ``points`` is what :func:`make_points` made."""
    if not shown:
        return
    top = os.fsencode(root + _POINT)
    if shown[0].name:
        batch.mount(_STEP, os.fsencode(points), top, None, sc.MS_BIND)
    for directory, name, _links in shown:
        target = os.fsencode(f"{root}{_POINT}/{name}")
        batch.mount(_STEP, os.fsencode(directory), target, None, sc.MS_BIND)
    size = len(_ATTRIBUTES)
    batch.add(_STEP, "mount_setattr", -100, top, sc.AT_RECURSIVE, _ATTRIBUTES, size)
