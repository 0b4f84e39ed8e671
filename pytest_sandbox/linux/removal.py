"""Remove directory trees that a container may have written.

The tree is walked through descriptors and without recursion, so that neither links nor depth nor
the length of a path can break the removal.
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

_MAX_NAMES = 10_000
_MAX_SHOWN = 200


def remove_tree(path: str, *, dir_fd: int | None = None) -> None:
    """Remove the directory ``path`` with its content, if it exists.

    Directories without permissions for their owner are removed too. Raises NotADirectoryError if
    ``path`` is a symbolic link or a file. Files that cannot be removed (a mount point, a file of
    another user) are left, and the first such error is raised at the end.
    """
    try:
        root = os.open(path, DIRECTORY, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    except PermissionError:
        root = _open_with_chmod(path, dir_fd)
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


def _open_with_chmod(name: str, directory: int | None) -> int:
    """Open a directory whose mode denies access to its owner, after changing the mode.

    chmod(2) follows symbolic links, so the mode is changed through an O_PATH descriptor.
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
    """A directory: its name, subdirectories to empty, names that are listed and do not exist, and
    names that could not be removed.
    """

    name: str
    pending: list[str] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)


class _Removal:
    """The removal of the content of ``root``, a descriptor of ``shown``, its path in errors."""

    def __init__(self, root: int, shown: str) -> None:
        self._stack = DirectoryStack(root)
        self._levels = [_Level(shown)]
        self._error: OSError | None = None

    def run(self) -> OSError | None:
        """Remove everything in the root; return the first error, if any."""
        with self._stack:
            while self._levels:
                level = self._levels[-1]
                if level.pending:
                    self._descend(level, level.pending.pop())
                elif not self._clear(level):
                    self._ascend()
        return self._error

    def _clear(self, level: _Level) -> bool:
        """Remove entries of the current directory; return whether there is more to do in it.

        It is called until it finds nothing: readdir(3) may skip names while others are removed, and
        it stops after a number of subdirectories.
        """
        found = False
        with os.scandir(self._stack.fd) as entries:
            for entry in entries:
                if entry.name in level.failed:
                    continue
                found = True
                if not entry.is_dir(follow_symlinks=False):
                    self._remove(os.unlink, level, entry.name)
                elif not self._remove_if_empty(entry.name):
                    level.pending.append(entry.name)
                    if len(level.pending) >= _MAX_NAMES:
                        break
        return found

    def _remove_if_empty(self, name: str) -> bool:
        try:
            os.rmdir(name, dir_fd=self._stack.fd)
        except OSError:
            return False
        return True

    def _remove(self, function: Callable[..., None], level: _Level, name: str) -> None:
        """Remove a name, if necessary after a chmod of its directory; remember it if that fails."""
        try:
            try:
                function(name, dir_fd=self._stack.fd)
            except PermissionError:
                os.fchmod(self._stack.fd, 0o700)
                function(name, dir_fd=self._stack.fd)
        except FileNotFoundError as error:
            self._note_missing(level, name, error)
        except OSError as error:
            self._fail(level, name, error)

    def _note_missing(self, level: _Level, name: str, error: OSError) -> None:
        """Take a name that does not exist as removed by another process, the first time.

        An overlay whose lower directory was changed lists such names for ever
        (Documentation/filesystems/overlayfs.rst, "Changes to underlying filesystems").
        """
        if name in level.missing:
            self._fail(level, name, error)
        level.missing.add(name)

    def _descend(self, level: _Level, name: str) -> None:
        try:
            fd = self._open(name)
        except FileNotFoundError as error:
            self._note_missing(level, name, error)
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
        """Open a subdirectory; raises OSError (EBUSY) for a mount point."""
        try:
            fd = os.open(name, DIRECTORY, dir_fd=self._stack.fd)
        except PermissionError:
            os.fchmod(self._stack.fd, 0o700)
            fd = _open_with_chmod(name, self._stack.fd)
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
            shown = path if len(path) <= _MAX_SHOWN else f"...{path[-_MAX_SHOWN:]}"
            self._error = OSError(error.errno, error.strerror, shown)
