"""Create directories that only this user can use, also in world-writable ones such as /tmp.

See inode(7), "The file type and mode".
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["check_private", "first_usable", "make_private", "private_ones"]


def first_usable(paths: Iterable[str]) -> str:
    """Create the first of these directories that can be used and is private; return its path.

    A byte is written, which fails on a full or read-only file system. Raises OSError, with the
    error of each directory, if none can be used.
    """
    refused = []
    for path in paths:
        try:
            make_private(path)
            with tempfile.TemporaryFile(dir=path, buffering=0) as file:
                file.write(b"x")
        except OSError as error:
            refused.append(f"{path}: {error.strerror}")
        else:
            return path
    raise OSError(errno.EACCES, f"no directory can be used ({'; '.join(refused)})")


def private_ones(paths: Iterable[str]) -> list[str]:
    """Return those of these directories that exist and are private."""
    found = []
    for path in paths:
        with suppress(OSError):
            check_private(path)
            found.append(path)
    return found


def make_private(path: str, below: str | None = None) -> str:
    """Create the directory ``path`` and missing parents with mode 0700; return ``path``.

    Parents from ``below`` down are checked too (default: ``path`` only). Raises PermissionError for
    a directory of another user or one that others can write to, NotADirectoryError for a symbolic
    link or another file, OSError if it cannot be created.
    """
    first = below or path
    _make_parents(os.path.dirname(first))
    names = [] if first == path else os.path.relpath(path, first).split("/")
    one = first
    for name in ("", *names):
        one = f"{one}/{name}" if name else one
        with suppress(FileExistsError):
            os.mkdir(one, 0o700)
        check_private(one)
        if os.lstat(one).st_mode & 0o077:
            os.chmod(one, 0o700)
    return path


def _make_parents(path: str) -> None:
    """Create ``path`` and missing parents with mode 0700; os.makedirs() uses the default mode."""
    if not os.path.isdir(path):
        _make_parents(os.path.dirname(path))
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)


def check_private(path: str) -> None:
    """Raise an exception unless ``path`` is a directory of this user that only it can write to.

    The exception is PermissionError or NotADirectoryError.
    """
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "it is not a directory: remove it", path)
    if status.st_uid != os.geteuid():
        raise PermissionError(
            errno.EACCES,
            f"it belongs to UID {status.st_uid}, which could change it: remove it",
            path,
        )
    if status.st_mode & 0o022:
        raise PermissionError(
            errno.EACCES,
            f"other users may write to it (mode {stat.S_IMODE(status.st_mode):04o}): remove it",
            path,
        )
