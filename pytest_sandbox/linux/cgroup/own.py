"""The cgroups that this process is in."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pytest_sandbox.linux import mountinfo
from pytest_sandbox.linux.cgroup.interface_files import read
from pytest_sandbox.linux.cgroup.mounts import parse_mounts, parse_own

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["own_directories"]


def own_directories(controller: str) -> Iterator[tuple[int, str]]:
    """Yield version and directory of each visible cgroup of a controller that this process is in,
    upwards to the root of the mount.
    """
    own = parse_own(read("/proc/self/cgroup"))
    for mount in parse_mounts(mountinfo.read()):
        if mount.version == 1 and controller not in mount.controllers:
            continue
        directory = mount.directory(own.get(controller if mount.version == 1 else "", "/"))
        while directory is not None and len(directory) >= len(mount.point):
            yield mount.version, directory
            directory = os.path.dirname(directory)
