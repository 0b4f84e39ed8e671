"""Overlays: a writable layer over folders that stay as they are (Documentation/filesystems/overlayfs.rst)."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from pytest_sandbox.linux import syscall as sc

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["make_layer", "mount_overlay"]


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
