"""What every container of a launcher is created from: init, user namespaces, the host's mounts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pytest_sandbox.linux import elf, mounts, namespaces, userns
from pytest_sandbox.linux.cgroup.view import make_points
from pytest_sandbox.runtime import etc_files, host_mounts, privileges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.linux.cgroup.view import ShownCgroup
    from pytest_sandbox.runtime.spec import Spec

__all__ = ["HostResources"]


class HostResources:
    """The descriptors that all containers of a launcher share, and the host's mounts.

    ``directory`` is the session's own. ``root`` is found again whenever something was mounted or
    unmounted (:meth:`find_mounts`).
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        #: A sealed memfd with the program of each container's PID 1 (CVE-2019-5736).
        self.init = elf.init_fd()
        self.launcher = os.pidfd_open(os.getpid())
        self._cgroup_names: set[str] = set()
        self.is_root = userns.is_initial()
        if not self.is_root:
            privileges.limit_inotify()
        #: The payloads' user namespaces: on the host's root; and on an image, where an unprivileged
        #: user is root.
        self.user_fd, self.root_user_fd = _payload_namespaces(self.is_root)
        self.find_mounts()

    def user_namespace_for(self, spec: Spec) -> int:
        """Return the payloads' user namespace, -1 if there is none.

        An unprivileged user is root in an image, whose files it owns, and itself on the host's
        root.
        """
        is_mapped = self.root_user_fd >= 0 and not spec.is_on_host
        return self.root_user_fd if is_mapped else self.user_fd

    def find_mounts(self) -> None:
        """Read the host's mounts, and try which of them can be lower layers of an overlay."""
        self.root = host_mounts.shown(privileges.find_root(self._directory))
        #: The mount point of the overlay that contains /etc; None if /etc is not in an overlay.
        self.etc_point = self._find_etc_point()

    def _find_etc_point(self) -> str | None:
        around = [
            entry
            for entry in self.root.below
            if f"{etc_files.DIRECTORY}/".startswith(f"{entry.point}/")
        ]
        innermost = max(around, key=lambda entry: len(entry.point), default=None)
        if innermost is not None and innermost.shown not in (mounts.WRITABLE, mounts.READ_ONLY):
            return None
        point = innermost.point if innermost else ""
        return point if etc_files.is_etc_directory(["/"]) else None

    def cgroup_points(self, shown: Sequence[ShownCgroup]) -> str:
        """Return the directory with the mount points of a container's cgroups, which is made once
        for a session.
        """
        directory = f"{self._directory}/cgroup"
        names = {one.name for one in shown if one.name}
        if not names <= self._cgroup_names:
            make_points(directory, shown)
            self._cgroup_names |= names
        return directory

    def points(self) -> list[tuple[str, str]]:
        """Return the mount point and the lower directory of each overlay below the root."""
        return [(entry.point, entry.lower) for entry in self.root.below]


def _payload_namespaces(is_root: bool) -> tuple[int, int]:
    """Return the payloads' user namespaces, on the host's root and on images; -1 for none.

    If no more user namespaces can be created (user.max_user_namespaces), the payloads keep docker's
    default protection, which needs none.
    """
    user = -1
    try:
        user = namespaces.make_user_namespace(owner=privileges.owner())
        return user, -1 if is_root else namespaces.make_user_namespace(rooted=True)
    except OSError:
        if user >= 0:
            os.close(user)
        return -1, -1
