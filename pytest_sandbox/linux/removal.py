"""Removal of directories whose content a container may have written.

Iterative and by descriptor, so that nothing in them can break it.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_sandbox.linux import process
from pytest_sandbox.linux.directories import DIRECTORY, DirectoryStack

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["remove_tree"]

_MOST_NAMES = 10_000
_MOST_SHOWN = 200


def remove_tree(path: str, *, dir_fd: int | None = None) -> None:
    """Remove the directory ``path`` and all in it, of any depth, also what its owner has no
    permissions for.

    What is gone already is fine. A symbolic link or a file in the place of ``path`` raises
    NotADirectoryError. What cannot be removed (a mount point, somebody else's file) stays, the rest
    is removed, and the first such error is raised at the end.
    """
    try:
        root = os.open(path, DIRECTORY, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    except PermissionError:
        root = _opened_to_owner(path, dir_fd)
    try:
        error = _Removal(root, path).run()
    finally:
        os.close(root)
    if error is not None:
        raise error
    try:
        os.rmdir(path, dir_fd=dir_fd)
    except FileNotFoundError:
        return


def _opened_to_owner(name: str, directory: int | None) -> int:
    """Open a directory that its mode closes to its owner. The mode is changed by descriptor.

    chmod(2) of a name follows links.
    """
    entry = os.open(
        name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory
    )
    try:
        os.chmod(process.path_of(entry), 0o700)
        return os.open(process.path_of(entry), DIRECTORY & ~os.O_NOFOLLOW)
    finally:
        os.close(entry)


@dataclass(slots=True)
class _Level:
    """One directory on the way.

    Its name in its parent, subdirectories to be emptied, and names that could not be removed.
    """

    name: str
    pending: list[str] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)


class _Removal:
    """One removal: what is below ``root``, which is called ``shown`` in errors."""

    def __init__(self, root: int, shown: str) -> None:
        self._stack = DirectoryStack(root)
        self._levels = [_Level(shown)]
        self._error: OSError | None = None

    def run(self) -> OSError | None:
        """Remove everything in the root; return the first error, None where there was none."""
        with self._stack:
            while self._levels:
                level = self._levels[-1]
                if level.pending:
                    self._descend(level, level.pending.pop())
                elif not self._clear(level):
                    self._ascend()
        return self._error

    def _clear(self, level: _Level) -> bool:
        """Remove what lies directly in the current directory.

        Return whether there is more to do in it.

        A directory is read again until nothing is found: removing while reading may skip names, and
        names are taken in portions.
        """
        found = False
        with os.scandir(self._stack.fd) as entries:
            for entry in entries:
                if entry.name in level.failed:
                    continue
                found = True
                if not entry.is_dir(follow_symlinks=False):
                    self._remove(os.unlink, level, entry.name)
                elif not self._is_removed_empty(entry.name):
                    level.pending.append(entry.name)
                    if len(level.pending) >= _MOST_NAMES:
                        break
        return found

    def _is_removed_empty(self, name: str) -> bool:
        try:
            os.rmdir(name, dir_fd=self._stack.fd)
        except OSError:
            return False
        return True

    def _remove(self, function: Callable[..., None], level: _Level, name: str) -> None:
        """Remove one name, where necessary with the permissions of an owner.

        Remember it where that fails.
        """
        try:
            try:
                function(name, dir_fd=self._stack.fd)
            except PermissionError:
                os.fchmod(self._stack.fd, 0o700)
                function(name, dir_fd=self._stack.fd)
        except FileNotFoundError:
            return
        except OSError as error:
            self._fail(level, name, error)

    def _descend(self, level: _Level, name: str) -> None:
        try:
            fd = self._open(name)
        except FileNotFoundError:
            return
        except NotADirectoryError:
            self._remove(os.unlink, level, name)
            return
        except OSError as error:
            self._fail(level, name, error)
            return
        self._stack.push(fd)
        self._levels.append(_Level(name))

    def _open(self, name: str) -> int:
        """Open a subdirectory. What is mounted there is not ours to remove."""
        try:
            fd = os.open(name, DIRECTORY, dir_fd=self._stack.fd)
        except PermissionError:
            os.fchmod(self._stack.fd, 0o700)
            fd = _opened_to_owner(name, self._stack.fd)
        if os.fstat(fd).st_dev == self._stack.device:
            return fd
        os.close(fd)
        raise OSError(errno.EBUSY, "a file system is mounted there")

    def _ascend(self) -> None:
        level = self._levels.pop()
        if self._levels:
            self._stack.pop()
            self._remove(os.rmdir, self._levels[-1], level.name)

    def _fail(self, level: _Level, name: str, error: OSError) -> None:
        level.failed.add(name)
        if self._error is None:
            path = "/".join([*(one.name for one in self._levels), name])
            shown = path if len(path) <= _MOST_SHOWN else f"...{path[-_MOST_SHOWN:]}"
            self._error = OSError(error.errno, error.strerror, shown)
