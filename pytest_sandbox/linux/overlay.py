"""Overlays: a writable layer over folders that stay as they are, and what was written to it.

The format of a layer is the kernel's (Documentation/filesystems/overlayfs.rst): a character device 0:0 stands for a deletion, the attribute
``overlay.opaque`` marks a folder that replaces the one below, ``overlay.redirect`` one that was renamed.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from pytest_sandbox.linux import syscall as sc

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["changes", "mount_overlay"]

_PRIVILEGED = "trusted.overlay."
_UNPRIVILEGED = "user.overlay."


def mount_overlay(lower: Sequence[str], layer: str, target: str, *, flags: int = 0, options: Sequence[str] = ()) -> None:
    """Mount ``lower`` (topmost first) on ``target`` with the writable layer in ``layer/upper``; ``layer/work`` is the kernel's.

    ``redirect_dir`` lets a folder of the lower layers be renamed, which would give EXDEV otherwise.
    """
    data = ["lowerdir=" + ":".join(map(_escaped, lower)), f"upperdir={layer}/upper", f"workdir={layer}/work", *options]
    sc.mount("overlay", target, "overlay", flags, ",".join(data))


def _escaped(path: str) -> str:
    """Escape what separates lower folders and mount options."""
    for character in "\\:,":
        path = path.replace(character, "\\" + character)
    return path


def make_layer(folder: str, like: str) -> None:
    """Make an empty layer whose root has the mode, owner and times of the folder ``like``."""
    os.mkdir(folder, 0o700)
    upper = f"{folder}/upper"
    os.mkdir(upper, 0o755)
    os.mkdir(f"{folder}/work", 0o700)
    status = os.stat(like)
    mode = stat.S_IMODE(status.st_mode)
    if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
        try:
            os.chown(upper, status.st_uid, status.st_gid)
        except OSError as error:  # an owner without a number in this user namespace: then we own it, with the rights that we had
            if error.errno not in {errno.EINVAL, errno.EPERM}:
                raise
            mode = mode & ~0o700 | sum(bit << 6 for bit in (os.R_OK, os.W_OK, os.X_OK) if os.access(like, bit))
    os.chmod(upper, mode)


def changes(upper: int, lower: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield ``(kind, path)`` for all that the writable layer ``upper`` (a folder's descriptor) says about the folders ``lower``.

    ``kind`` is "added", "modified" or "deleted"; ``path`` begins with "/". A folder that holds a change is itself "modified", as
    ``docker diff`` says it.
    """
    yield from _changes(upper, "", lower)


def _changes(folder: int, path: str, lower: Sequence[str]) -> Iterator[tuple[str, str]]:
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    below = _names(lower, path) if _is_opaque(folder) else set()
    for entry in found:
        below.discard(entry.name)
        yield from _change(folder, entry, f"{path}/{entry.name}", lower)
    for name in sorted(below):
        yield "deleted", f"{path}/{name}"


def _change(folder: int, entry: os.DirEntry[str], path: str, lower: Sequence[str]) -> Iterator[tuple[str, str]]:
    status = entry.stat(follow_symlinks=False)
    was = _lower_mode(lower, path)
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        if was is not None:
            yield "deleted", path
        return
    yield "added" if was is None else "modified", path
    if not stat.S_ISDIR(status.st_mode):
        return
    child = os.open(entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        yield from _changes(child, path, lower if was is not None and stat.S_ISDIR(was) else ())
    finally:
        os.close(child)


def _lower_mode(lower: Sequence[str], path: str) -> int | None:
    """Return the mode of what the topmost lower folder that knows ``path`` has there; None where it is nowhere, or deleted."""
    for folder in lower:
        try:
            status = os.lstat(folder.rstrip("/") + path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        return None if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0 else status.st_mode
    return None


def _names(lower: Sequence[str], path: str) -> set[str]:
    names: set[str] = set()
    for folder in lower:
        try:
            names.update(os.listdir(folder.rstrip("/") + path))
        except (FileNotFoundError, NotADirectoryError):
            continue
    return {name for name in names if _lower_mode(lower, f"{path}/{name}") is not None}


def _is_opaque(folder: int) -> bool:
    for prefix in (_PRIVILEGED, _UNPRIVILEGED):
        try:
            if os.getxattr(folder, prefix + "opaque") == b"y":
                return True
        except OSError:
            continue
    return False
