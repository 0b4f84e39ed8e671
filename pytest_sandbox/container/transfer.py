"""Copy files between host and container, as ``docker cp``.

Files are opened by descriptors, so that no link of either side is followed on the other.

A symbolic link is copied out of a container as a link only if it cannot lead out of the copied
directory, wherever that is on the host; another one is copied as the file that it leads to inside.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from pytest_sandbox.linux import process
from pytest_sandbox.linux.copying import TreeCopy, copy_content
from pytest_sandbox.linux.directories import DIRECTORY, open_entry, open_regular

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["copy_in", "copy_out"]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD_FILE = os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FOUND_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MODE = 0o777  # without set-user-ID, which would hold for another user on the other side
_DANGLING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}

Path = str | os.PathLike[str]
if TYPE_CHECKING:
    #: Opens a path inside, with the flags of open(2): links are resolved inside, and magic links of
    #: procfs are not followed.
    Open = Callable[[str, int], int]


def copy_in(open_inside: Open, source: Path, target: Path, *, owners: bool = False) -> None:
    """Copy a file, a link or a directory of the host to ``target`` inside, or into it if it is a
    directory; ``DIRECTORY/.`` copies the content of a directory. Raises OSError.
    """
    found = os.lstat(source)  # the error names the path as it was given
    path = os.path.abspath(os.fspath(source))
    name = "." if os.fspath(source).endswith("/.") else os.path.basename(path)
    is_directory = stat.S_ISDIR(found.st_mode)
    directory, name = _place_inside(open_inside, os.fspath(target), name, is_directory)
    try:
        entry = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _copy(partial(_Transfer, owners=owners), entry, directory, name, path)
        finally:
            os.close(entry)
    finally:
        os.close(directory)


def copy_out(open_inside: Open, source: Path, target: Path, *, owners: bool = False) -> None:
    """Copy a file or a directory inside to ``target`` on the host, or into it if it is a directory.

    ``DIRECTORY/.`` copies the content of a directory. If ``source`` is a link, it is followed
    inside. Raises OSError, also for a link in a directory that leads to a directory outside of the
    copied one: copying that too could take any amount of space.
    """
    path = os.fspath(source)
    name = "." if path.endswith("/.") else os.path.basename(os.path.normpath(path)) or "."
    entry = open_inside(path, os.O_PATH)
    try:
        into, as_name = (
            (os.fspath(target), name)
            if os.path.isdir(target)
            else os.path.split(os.path.abspath(os.fspath(target)))
        )
        directory = os.open(into, _FOUND_DIRECTORY)
        try:
            _copy(
                lambda root: _Out(root, open_inside, path, owners=owners),
                entry,
                directory,
                as_name or ".",
                path,
            )
        finally:
            os.close(directory)
    finally:
        os.close(entry)


def _place_inside(open_inside: Open, target: str, name: str, is_directory: bool) -> tuple[int, str]:
    """Return a descriptor of the target directory, and the name of the copy in it.

    Raises OSError for a file that is copied to a missing directory: with a slash at its end,
    ``target`` is no name for a file.
    """
    try:
        return open_inside(target, _FOUND_DIRECTORY), name
    except (FileNotFoundError, NotADirectoryError):
        if target.endswith("/") and not is_directory:
            raise
        parent, last = os.path.split(target.rstrip("/"))
        return open_inside(parent or ".", _FOUND_DIRECTORY), last


def _copy(
    make: Callable[[int], _Transfer], entry: int, directory: int, name: str, shown: str
) -> None:
    """Copy the file of the O_PATH descriptor ``entry``, as ``name`` in a directory."""
    status = os.fstat(entry)
    if not stat.S_ISDIR(status.st_mode):
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
            raise OSError(
                errno.EINVAL,
                "a FIFO, a socket or a device: only files, links and directories can be copied",
                shown,
            )
        make(directory).file(entry, status, directory, name)
        return
    source = os.open(process.path_of(entry), _FOUND_DIRECTORY)
    try:
        target, is_new = _make_directory(directory, name)
        try:
            copy = make(target)
            copy.created.append(is_new)
            copy.run(source)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _make_directory(directory: int, name: str) -> tuple[int, bool]:
    """Create a directory unless it exists; return a descriptor, and whether it is new."""
    try:
        os.mkdir(name, 0o700, dir_fd=directory)
        is_new = True
    except FileExistsError:
        is_new = False
    return os.open(name, DIRECTORY, dir_fd=directory), is_new


class _Transfer(TreeCopy):
    """A copy that belongs to this process's user, with modes and times; with ``owners``, files
    keep their UID and GID, as far as this process may set them.

    FIFOs, sockets and devices are skipped: they have no meaning on the other side.
    """

    def __init__(self, target: int, *, owners: bool = False) -> None:
        super().__init__(target)
        self._owners = owners
        #: Whether the copy created each directory on the way. One that existed keeps its mode.
        self.created: list[bool] = []

    def is_linked(self, status: os.stat_result) -> bool:
        return stat.S_ISREG(status.st_mode)

    def file(self, entry: int, status: os.stat_result, target: int, name: str) -> None:
        if stat.S_ISREG(status.st_mode):
            self.regular(entry, status, target, name)
        elif stat.S_ISLNK(status.st_mode):
            self.link(os.readlink("", dir_fd=entry), target, name)

    def regular(self, entry: int, status: os.stat_result, target: int, name: str) -> None:
        """Copy a regular file."""
        read = open_regular(entry)
        try:
            write = _open_target(target, name)
            try:
                self.count(copy_content(read, write, status))
                self._own(write, status)
                os.fchmod(write, stat.S_IMODE(status.st_mode) & _MODE)
                os.utime(write, ns=(status.st_atime_ns, status.st_mtime_ns))
            finally:
                os.close(write)
        finally:
            os.close(read)

    def _own(self, fd: int, status: os.stat_result) -> None:
        if self._owners:
            with suppress(PermissionError):
                os.fchown(fd, status.st_uid, status.st_gid)

    def link(self, text: str, target: int, name: str) -> None:
        """Create a symbolic link."""
        os.symlink(text, name, dir_fd=target)
        self.count()

    def directory(self, target: int, name: str) -> int:
        fd, is_new = _make_directory(target, name)
        self.created.append(is_new)
        return fd

    def leave(self, source: int, target: int) -> None:
        if self.created.pop():
            status = os.fstat(source)
            self._own(target, status)
            os.fchmod(target, stat.S_IMODE(status.st_mode) & _MODE)


def _open_target(directory: int, name: str) -> int:
    """Return a descriptor of a new or truncated regular file.

    Raises OSError if the name belongs to another kind of file, which is not opened.
    """
    try:
        return os.open(name, _NEW_FILE, 0o600, dir_fd=directory)
    except FileExistsError:
        entry = open_entry(name, directory)
    try:
        mode = os.fstat(entry).st_mode
        if stat.S_ISREG(mode):
            return os.open(process.path_of(entry), _OLD_FILE)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        raise FileExistsError(errno.EEXIST, "the target exists and is not a regular file", name)
    finally:
        os.close(entry)


class _Out(_Transfer):
    """A copy of the path ``source`` inside to the host."""

    def __init__(
        self, target: int, open_inside: Open, source: str, *, owners: bool = False
    ) -> None:
        super().__init__(target, owners=owners)
        self._open = open_inside
        self._source = source

    def link(self, text: str, target: int, name: str) -> None:
        """Create a link if it stays in the copied directory, else a copy of the file that it leads
        to inside.
        """
        if _stays(text, len(self.names)):
            super().link(text, target, name)
            return
        path = "/".join([self._source, *self.names, name])
        try:
            entry = self._open(path, os.O_PATH)
        except OSError as error:
            if error.errno in _DANGLING:  # the link is broken inside, too
                return
            raise
        try:
            self._copy_target(entry, target, name, path)
        finally:
            os.close(entry)

    def _copy_target(self, entry: int, target: int, name: str, path: str) -> None:
        """Copy what a link leads to."""
        status = os.fstat(entry)
        if stat.S_ISDIR(status.st_mode):
            reason = (
                "the link leads to a directory outside of the copied one: copy that directory by "
                "its own path"
            )
            raise OSError(errno.EINVAL, reason, path)
        # Several links to one file become hard links to one copy, which takes the space once.
        if stat.S_ISREG(status.st_mode) and not self.link_again(status, target, name, always=True):
            self.regular(entry, status, target, name)


def _stays(text: str, depth: int) -> bool:
    """Return whether a link in a directory ``depth`` levels below the root of the copy leads to a
    path below that root.

    ".." is accepted only at the beginning of the link, where it leaves directories of the copy.
    After another name, which may be a link itself, its meaning is not known.
    """
    parts = [part for part in text.split("/") if part not in {"", "."}]
    up = next((at for at, part in enumerate(parts) if part != ".."), len(parts))
    return not text.startswith("/") and up <= depth and ".." not in parts[up:]
