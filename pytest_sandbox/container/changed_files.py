"""Copy the files that a container has changed to the same paths on the host.

What runs inside may change names while they are copied, so a path is never followed through a
symbolic link, on either side: each is opened below the descriptor of its pattern's root, which the
user has named (openat2(2), RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS). A copy gets its name when it
is complete, so that it replaces a link and is never written through one.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from pytest_sandbox.container.diff import changes_of
from pytest_sandbox.container.files import open_inside
from pytest_sandbox.container.path_patterns import Patterns
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.copying import copy_content
from pytest_sandbox.linux.directories import open_regular
from pytest_sandbox.units import mib

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_sandbox.container.handle import Handle
    from pytest_sandbox.container.path_patterns import Pattern

__all__ = ["Copied", "copy_changed"]

_BENEATH = sc.RESOLVE_BENEATH | sc.RESOLVE_NO_SYMLINKS
_ENTRY = os.O_PATH | os.O_NOFOLLOW
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: Files that are copied at most, and seconds that the search for them may take.
_MAX_FILES = 10_000
_MAX_SECONDS = 1.0
_LINKS = {errno.ELOOP, errno.ENOTDIR, errno.EXDEV}


@dataclass
class Copied:
    """What was copied: ``files`` are paths on the host, ``left_out`` the paths inside that were
    not copied, with the reason. ``complete`` is false if the search for files was ended early.
    """

    files: list[str] = field(default_factory=list)
    size: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    complete: bool = True


def copy_changed(
    handle: Handle,
    patterns: Sequence[Pattern],
    limit: int,
    new_name: Callable[[str, str], str] = lambda _root, name: name,
    since: int = 0,
) -> Copied:
    """Copy the regular files that were added or modified and match a pattern.

    The copies belong to the calling user. ``limit`` is the number of bytes of all together; files
    that exceed it are left out. ``new_name`` returns the name on the host for an entry of a root.
    ``since`` leaves out what has last changed before, in nanoseconds since the epoch.
    Raises :class:`SandboxError` and OSError if the layer cannot be read.
    """
    selection = Patterns(patterns)
    changes = changes_of(
        handle, most=10 * _MAX_FILES, seconds=_MAX_SECONDS, selection=selection, since=since
    )
    copied = Copied(complete=changes.complete)
    with ExitStack() as opened:
        trees: dict[str, _Tree] = {}
        for change in changes:
            number = None if change.kind == "deleted" else selection.match(change.path)
            if number is None:
                continue
            root = patterns[number].root
            if root not in trees:
                trees[root] = opened.enter_context(_Tree(handle, root, new_name))
            _copy_one(trees[root], change.path, copied, limit)
    return copied


def _copy_one(tree: _Tree, path: str, copied: Copied, limit: int) -> None:
    if len(copied.files) >= _MAX_FILES:
        copied.left_out[path] = f"a test may leave {_MAX_FILES} files"
        return
    try:
        size = tree.copy(path, limit - copied.size)
    except OSError as error:
        if error.errno != errno.ENOENT:  # it was removed meanwhile
            copied.left_out[path] = error.strerror or str(error)
        return
    if size is not None:
        copied.files.append(tree.target(path))
        copied.size += size


class _Tree:
    """The directory of a pattern's root, inside and on the host."""

    def __init__(self, handle: Handle, root: str, new_name: Callable[[str, str], str]) -> None:
        self._handle = handle
        self._root = root
        self._new_name = new_name
        self._inside = self._outside = -1

    def __enter__(self) -> Self:
        flags = os.O_PATH | os.O_DIRECTORY
        self._inside = open_inside(self._handle, self._root, flags, follow=False)
        return self

    def __exit__(self, *_exception: object) -> None:
        for fd in (self._inside, self._outside):
            if fd >= 0:
                os.close(fd)

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, self._root)

    def _renamed(self, path: str) -> str:
        first, slash, rest = self._relative(path).partition("/")
        return f"{self._new_name(self._root, first)}{slash}{rest}"

    def target(self, path: str) -> str:
        """Return the path of the copy."""
        return os.path.join(self._root, self._renamed(path))

    def copy(self, path: str, most: int) -> int | None:
        """Copy a file of at most ``most`` bytes; return its size, None if it is no regular file.

        Raises OSError.
        """
        entry = sc.openat2(self._relative(path), _ENTRY, _BENEATH, dir_fd=self._inside)
        try:
            status = os.fstat(entry)
            if not stat.S_ISREG(status.st_mode):
                return None
            if status.st_size > most:
                raise OSError(errno.EFBIG, f"{mib(status.st_size)} exceed the limit")
            source = open_regular(entry)
        finally:
            os.close(entry)
        try:
            return self._write(source, status, self._renamed(path))
        finally:
            os.close(source)

    def _write(self, source: int, status: os.stat_result, name: str) -> int:
        parent, last = os.path.split(name)
        directory = self._open_parent(parent)
        try:
            # The name must not be longer than that of the file, which may be the longest.
            temporary = f".{secrets.token_hex(8)}"
            fd = os.open(temporary, _NEW_FILE, 0o600, dir_fd=directory)
            try:
                size = copy_content(source, fd, status)
                # Readable for its owner, without set-user-ID, which would hold for another user.
                os.fchmod(fd, (stat.S_IMODE(status.st_mode) & 0o777) | 0o600)
                os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
                os.rename(temporary, last, src_dir_fd=directory, dst_dir_fd=directory)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=directory)
                raise
            finally:
                os.close(fd)
        finally:
            os.close(directory)
        return size

    def _open_parent(self, parent: str) -> int:
        """Return a descriptor of a directory below the root on the host, which is created."""
        if self._outside < 0:
            os.makedirs(self._root, exist_ok=True)
            self._outside = os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                return sc.openat2(parent or ".", _DIRECTORY, _BENEATH, dir_fd=self._outside)
            except FileNotFoundError:
                return self._make_parent(parent)
        except OSError as error:
            if error.errno in _LINKS:
                reason = f"{os.path.join(self._root, parent)} on the host has a symbolic link"
                raise OSError(error.errno, reason) from None
            raise

    def _make_parent(self, parent: str) -> int:
        directory = os.dup(self._outside)
        for name in parent.split("/"):
            try:
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=directory)
                child = os.open(name, _DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
            finally:
                os.close(directory)
            directory = child
        return directory
