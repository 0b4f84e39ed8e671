"""Overlays: a writable layer over directories that stay as they are
(Documentation/filesystems/overlayfs.rst).
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux import userns

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_sandbox.linux.syscall_batch import Result, SyscallBatch

__all__ = [
    "Like",
    "add_layer",
    "add_overlay",
    "add_read_only",
    "make_layer",
    "make_whiteout",
    "mount_overlay",
]

_DIRECTORIES = (("", 0o700), ("/upper", 0o755), ("/work", 0o700))


class Like(NamedTuple):
    """A directory whose mode and owner a layer's root gets: a path, below a descriptor where there
    is one.
    """

    path: str
    fd: int | None = None


def mount_overlay(
    lower: Sequence[str], layer: str, target: str, *, flags: int = 0, options: Sequence[str] = ()
) -> None:
    """Mount ``lower`` (topmost first) on ``target`` with the writable layer in ``layer/upper``;
    ``layer/work`` is the kernel's.
    """
    sc.mount("overlay", target, "overlay", flags, _data(lower, layer, options))


def add_overlay(
    batch: SyscallBatch,
    step: str,
    lower: Sequence[str],
    layer: str,
    target: str,
    *,
    flags: int = 0,
    options: Sequence[str] = (),
) -> Result:
    """:func:`mount_overlay` as a step of a batch.

    ``redirect_dir`` lets a directory of the lower layers be renamed, which would give EXDEV
    otherwise.
    """
    return batch.mount(
        step,
        b"overlay",
        os.fsencode(target),
        b"overlay",
        flags,
        os.fsencode(_data(lower, layer, options)),
    )


def add_read_only(
    batch: SyscallBatch,
    step: str,
    lower: Sequence[str],
    target: str,
    *,
    flags: int = 0,
    options: Iterable[str] = (),
) -> None:
    """Mount an overlay without a writable layer as a step of a batch; it takes two lower
    directories at least.

    Of ``options`` those that only a writable layer needs are left out.
    """
    data = ",".join(
        [_lower(lower), *(option for option in options if not option.startswith("redirect_dir"))]
    )
    batch.mount(
        step, b"overlay", os.fsencode(target), b"overlay", flags | sc.MS_RDONLY, os.fsencode(data)
    )


def _data(lower: Sequence[str], layer: str, options: Sequence[str]) -> str:
    return ",".join([_lower(lower), f"upperdir={layer}/upper", f"workdir={layer}/work", *options])


def _lower(lower: Sequence[str]) -> str:
    return "lowerdir=" + ":".join(map(_escaped, lower))


def _escaped(path: str) -> str:
    """Escape what separates lower directories and mount options."""
    for character in "\\:,":
        path = path.replace(character, "\\" + character)
    return path


def make_layer(directory: str, like: str) -> None:
    """Make an empty layer whose root has the mode, owner and times of the directory ``like``."""
    for name, mode in _DIRECTORIES:
        os.mkdir(f"{directory}{name}", mode)
    owner, mode = _nature(Like(like))
    if owner is not None:
        os.chown(f"{directory}/upper", *owner)
    os.chmod(f"{directory}/upper", mode)


def add_layer(batch: SyscallBatch, step: str, directory: str, like: Like) -> None:
    """:func:`make_layer` as a step of a batch; what is there already stays."""
    for name, mode in _DIRECTORIES:
        batch.add(step, "mkdirat", -1, f"{directory}{name}".encode(), mode, go_on=True)
    upper = f"{directory}/upper".encode()
    owner, mode = _nature(like)
    if owner is not None:
        batch.add(step, "fchownat", -1, upper, *owner, 0)
    batch.add(step, "fchmodat", -1, upper, mode)


def _nature(like: Like) -> tuple[tuple[int, int] | None, int]:
    """Return the owner that a layer's root gets, None where it has it already, and its mode.

    An owner without a number in this user namespace is not to be had: then we own it, with the
    rights that we had.
    """
    status = os.stat(like.path, dir_fd=like.fd)
    mode, owner = stat.S_IMODE(status.st_mode), (status.st_uid, status.st_gid)
    if owner == (os.geteuid(), os.getegid()):
        return None, mode
    if userns.has_id("uid", owner[0]) and userns.has_id("gid", owner[1]):
        return owner, mode
    return None, mode & ~0o700 | sum(
        bit << 6 for bit in (os.R_OK, os.W_OK, os.X_OK) if os.access(like.path, bit, dir_fd=like.fd)
    )


def make_whiteout(path: str) -> None:
    """Mark a name as deleted, in a directory that is to be a layer; PermissionError on a file
    system that is an overlay itself.
    """
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
