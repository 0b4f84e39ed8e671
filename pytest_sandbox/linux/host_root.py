"""What the host's root looks like to those who lay containers over it, and where the rights of who
lays them make a difference.

Root lays one overlay over ``/`` and one over each file system below. Without root the kernel
refuses an overlay over a directory that has a mount below it (it would show what the mount covers).
Then such a directory is *split*: its place is taken by a skeleton with the same names, and each
directory in it that has no mount below gets an overlay of its own. And as no file of another user
can be copied up, the first directory that the user may write to, on the way to where it works, gets
one too.
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

#: Directories where any user works, beside those that depend on the user.
_SHARED = ("/tmp", "/var/tmp", "/run/lock")
_TTY = 5
_ATTRIBUTE = "user.pytest-sandbox"


@dataclass(frozen=True, slots=True)
class HostRoot:
    """``root`` is the directory below the container's root, ``below`` what is laid over it, parents
    first, ``options`` those of every overlay.

    ``layers`` is the directory of writable layers where a tmpfs cannot hold one: before Linux 6.6
    it has no attributes for who is not root. ``tty_group`` tells whether the group of terminals has
    a number here. ``copied`` are mounted files that are copied for each container, by the point of
    the overlay that they lie in ("": the root); ``refused`` are the sockets and FIFOs among the
    mounts, and directories that cannot be shown: a container gets inert ones and empty ones in
    their places.
    """

    root: str
    below: tuple[mounts.Mounted, ...]
    options: tuple[str, ...] = ("redirect_dir=on",)
    layers: str | None = None
    tty_group: bool = True
    copied: dict[str, tuple[str, ...]] = field(default_factory=dict)
    refused: tuple[str, ...] = ()


def for_root() -> HostRoot:
    """Return what root stands on: the host's own root."""
    return HostRoot("/", tuple(mounts.real_mounts(mounts.mounted())))


def for_user(skeleton: str, works: Iterable[str], layers: str | None) -> HostRoot:
    """Return what a user stands on.

    ``skeleton`` is a new directory's path, and ``works`` are the directories where the user works.
    """
    shutil.rmtree(skeleton, ignore_errors=True)
    os.makedirs(skeleton, 0o700)
    splitter = _Splitter(mounts.mounted(), skeleton)
    root = splitter.split("/")
    for path in (*_SHARED, *works):
        splitter.open(path)
    below = tuple(sorted(splitter.below.values(), key=lambda entry: entry.point))
    has_tty = userns.has_id("gid", _TTY)
    return HostRoot(root, below, ("userxattr",), layers, has_tty, refused=tuple(splitter.refused))


def takes_attributes(directory: str) -> bool:
    """Whether a user's overlay can have its writable layer in ``directory``: it marks directories
    by user attributes (xattr(7)).
    """
    try:
        os.setxattr(directory, _ATTRIBUTE, b"")
        os.removexattr(directory, _ATTRIBUTE)
    except OSError:
        return False
    return True


class _Splitter:
    def __init__(self, entries: Iterable[mounts.Mounted], skeleton: str) -> None:
        self.mounts = {entry.point: entry for entry in entries}
        self.skeleton = skeleton
        self.below: dict[str, mounts.Mounted] = {}
        self.refused: list[str] = []
        self._count = 0

    def split(self, path: str) -> str:
        """Make a skeleton of a directory that has mounts below it, and see to all that is in it."""
        self._count += 1
        directory = f"{self.skeleton}/{self._count}"
        os.mkdir(directory, 0o755)
        try:
            with os.scandir(path) as entries:
                found = list(entries)
        except OSError:  # what the user cannot list is as empty as it looks
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
        elif file_mounts.is_unreachable(
            mode := entry.stat().st_mode
        ):  # is_file() would tell what a mount of a file covers
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

    def _mount_of(self, path: str) -> mounts.Mounted:
        while path not in self.mounts and path != "/":
            path = os.path.dirname(path)
        return self.mounts.get(path) or mounts.Mounted("/", "", 0)

    def _file(self, entry: os.DirEntry[str], target: str) -> None:
        status = entry.stat()
        if status.st_size <= file_mounts.LARGEST:
            try:
                shutil.copy2(entry.path, target)
            except OSError:  # what the user cannot read, it cannot read in there
                os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC, 0))
            return
        os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC, stat.S_IMODE(status.st_mode)))
        self.below[entry.path] = replace(self._mount_of(entry.path), point=entry.path)

    def open(self, path: str) -> None:
        """Give an overlay of its own to the first directory on the way to ``path`` in which the
        user may write.
        """
        path = os.path.realpath(path)
        way = [path[:end] for end in range(1, len(path)) if path[end] == "/"]
        directory = next(
            (
                one
                for one in [*way, path]
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
    """Whether this kernel's tmpfs has user attributes (Linux 6.6); tried in a fork, which takes the
    mount with it.
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
