"""Decide which overlays and binds show the host's root file system in a container.

Root mounts an overlay on ``/`` and one on each file system below. For an unprivileged user, the
kernel refuses an overlay over a directory with a mount below it, because the overlay would show
what the mount covers (locked mounts, mount_namespaces(7)). Such a directory is *split*: it is
replaced by a skeleton with the same names, and each directory in it without a mount below gets an
overlay. Files of other users cannot be copied up, so each directory in which the user works is
mounted separately: an overlay on the first writable directory of its path.
"""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pytest_sandbox.linux import file_mounts, mounts, userns
from pytest_sandbox.linux import syscall as sc

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["HostRoot", "for_root", "for_user", "takes_attributes", "tmpfs_takes_attributes"]

#: Directories in which every user works.
_SHARED = ("/tmp", "/var/tmp", "/run/lock")
_TTY = 5
_ATTRIBUTE = "user.pytest-sandbox"


@dataclass(frozen=True, slots=True)
class HostRoot:
    """The lower layer of the root, and the mounts on it.

    - ``root``: the directory that is the lower layer of the container's root.
    - ``below``: the mounts on it, parents first.
    - ``options``: mount options of every overlay.
    - ``layers``: the directory for writable layers if a tmpfs cannot have them: an unprivileged
      overlay needs user attributes, which tmpfs has since Linux 6.6.
    - ``tty_group``: whether the group ``tty`` has a GID in this user namespace.
    - ``copied``: files that are mount points and are copied for each container, by the mount point
      of their overlay ("" is the root).
    - ``refused``: sockets and FIFOs that are mount points, and directories that cannot be shown. A
      container gets unconnected nodes and empty directories instead.
    """

    root: str
    below: tuple[mounts.HostMount, ...]
    options: tuple[str, ...] = ("redirect_dir=on",)
    layers: str | None = None
    tty_group: bool = True
    copied: dict[str, tuple[str, ...]] = field(default_factory=dict)
    refused: tuple[str, ...] = ()


def for_root() -> HostRoot:
    """Return the host root for a privileged user: ``/`` itself is the lower layer."""
    return HostRoot("/", tuple(mounts.real_mounts(mounts.list_mounts())))


def for_user(skeleton: str, works: Iterable[str], layers: str | None) -> HostRoot:
    """Return the host root for an unprivileged user.

    ``skeleton`` is the path of a directory to create; ``works`` are directories in which the user
    works.
    """
    shutil.rmtree(skeleton, ignore_errors=True)
    os.makedirs(skeleton, 0o700)
    splitter = _Splitter(mounts.list_mounts(), skeleton)
    root = splitter.split("/")
    for path in (*_SHARED, *works):
        splitter.open(path)
    below = tuple(sorted(splitter.below.values(), key=lambda entry: entry.point))
    has_tty = userns.has_id("gid", _TTY)
    return HostRoot(root, below, ("userxattr",), layers, has_tty, refused=tuple(splitter.refused))


def takes_attributes(directory: str) -> bool:
    """Return whether an unprivileged overlay can have its writable layer in ``directory``.

    It needs user attributes (xattr(7)), which mark opaque directories (option ``userxattr``).
    """
    try:
        os.setxattr(directory, _ATTRIBUTE, b"")
        os.removexattr(directory, _ATTRIBUTE)
    except OSError:
        return False
    return True


class _Splitter:
    """The construction of a skeleton, and the mounts on it."""

    def __init__(self, entries: Iterable[mounts.HostMount], skeleton: str) -> None:
        self.mounts = {entry.point: entry for entry in entries}
        self.skeleton = skeleton
        self.below: dict[str, mounts.HostMount] = {}
        self.refused: list[str] = []
        self._count = 0

    def split(self, path: str) -> str:
        """Create a skeleton of a directory that has mounts below it; return its path."""
        self._count += 1
        directory = f"{self.skeleton}/{self._count}"
        os.mkdir(directory, 0o755)
        try:
            with os.scandir(path) as entries:
                found = list(entries)
        except OSError:  # a directory that the user cannot list is empty in the container
            return directory
        for entry in found:
            self._place(entry, f"{directory}/{entry.name}")
        return directory

    def _place(self, entry: os.DirEntry[str], target: str) -> None:
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), target)
        elif entry.is_dir():
            os.mkdir(target)
            self._directory(entry.path)
        # is_file() would return the type of the file that a mount on it hides.
        elif file_mounts.is_unreachable(mode := entry.stat().st_mode):
            os.mknod(target, mode)
            os.chmod(target, stat.S_IMODE(mode))
            self.refused += [entry.path] if entry.path in self.mounts else []
        elif entry.is_file():
            self._file(entry, target)

    def _directory(self, path: str) -> None:
        mount = self._mount_of(path)
        if path in mounts.OWN or mount.fstype in mounts.PSEUDO:
            return
        self.below[path] = replace(mount, point=path, is_mount=path in self.mounts)
        if any(point.startswith(f"{path}/") for point in self.mounts):
            self.below[path] = replace(self.below[path], source=self.split(path))

    def _mount_of(self, path: str) -> mounts.HostMount:
        while path not in self.mounts and path != "/":
            path = os.path.dirname(path)
        return self.mounts.get(path) or mounts.HostMount("/", "", 0)

    def _file(self, entry: os.DirEntry[str], target: str) -> None:
        status = entry.stat()
        if status.st_size <= file_mounts.MAX_SIZE:
            try:
                shutil.copy2(entry.path, target)
            except OSError:  # unreadable on the host, and so in the container
                os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC, 0))
            return
        os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC, stat.S_IMODE(status.st_mode)))
        self.below[entry.path] = replace(self._mount_of(entry.path), point=entry.path)

    def open(self, path: str) -> None:
        """Mount an overlay on the first directory of ``path`` in which the user may write."""
        path = os.path.realpath(path)
        ancestors = [path[:end] for end in range(1, len(path)) if path[end] == "/"]
        directory = next(
            (
                one
                for one in [*ancestors, path]
                if one != "/" and os.path.isdir(one) and os.access(one, os.W_OK)
            ),
            None,
        )
        if (
            directory is not None
            and directory not in self.below
            and not any(_within(directory, own) for own in mounts.OWN)
        ):
            self._directory(directory)


def _within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")


def tmpfs_takes_attributes() -> bool:
    """Return whether tmpfs has user attributes (since Linux 6.6).

    It is tried in a forked process, whose mount namespace and mount end with it.
    """
    pid = os.fork()
    if pid:
        _pid, status = os.waitpid(pid, 0)
        return status == 0
    try:
        sc.unshare(sc.CLONE_NEWNS)
        mounts.make_private()
        sc.mount("tmpfs", mounts.STAGE, "tmpfs")
        os._exit(not takes_attributes(mounts.STAGE))
    finally:
        os._exit(1)
