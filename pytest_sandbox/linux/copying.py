"""A folder copied with all that an overlay's layer says: owners, modes, times, attributes, devices, links, and names that share a file."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress

__all__ = ["copy_tree"]


def copy_tree(source: int, target: str, *, owners: bool = True) -> None:
    """Copy the folder ``source`` (a descriptor) to the new folder ``target``; no link in it is followed. Sockets are left out.

    Without ``owners`` all of the copy belongs to the calling process's user.
    """
    _Copying(owners=owners).folder(source, target)


class _Copying:
    """One copy of a tree: which owners it keeps, and the names that share a file."""

    def __init__(self, *, owners: bool) -> None:
        self._owners = owners
        self._seen: dict[tuple[int, int], str] = {}

    def folder(self, source: int, target: str) -> None:
        """Copy a folder and all below it."""
        os.mkdir(target, 0o700)
        with os.scandir(source) as entries:
            for entry in entries:
                self._entry(source, entry.name, f"{target}/{entry.name}")
        _copy_attributes(source, target)
        self._status(os.fstat(source), target)

    def _entry(self, folder: int, name: str, target: str) -> None:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                self.folder(child, target)
            finally:
                os.close(child)
            return
        known = self._seen.setdefault((status.st_dev, status.st_ino), target)
        if known != target:
            os.link(known, target, follow_symlinks=False)
            return
        self._file(folder, name, target, status)

    def _file(self, folder: int, name: str, target: str, status: os.stat_result) -> None:
        if stat.S_ISREG(status.st_mode):
            with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder), "rb") as read, open(target, "xb") as write:
                shutil.copyfileobj(read, write)
                write.flush()  # writing, as a change of the owner, takes capabilities away
                self._owner(status, target)
                _copy_attributes(read.fileno(), target)
            _copy_mode(status, target)
            return
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=folder), target)
        elif not stat.S_ISSOCK(status.st_mode):
            os.mknod(target, status.st_mode, status.st_rdev)
        else:
            return
        self._status(status, target)

    def _status(self, status: os.stat_result, target: str) -> None:
        self._owner(status, target)
        _copy_mode(status, target)

    def _owner(self, status: os.stat_result, target: str) -> None:
        if self._owners:
            with suppress(PermissionError):
                os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)


def _copy_attributes(source: int, target: str) -> None:
    for name in os.listxattr(source):
        with suppress(OSError):  # one that the target's file system does not take
            os.setxattr(target, name, os.getxattr(source, name))


def _copy_mode(status: os.stat_result, target: str) -> None:
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
