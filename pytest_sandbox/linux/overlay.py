"""Mount overlays, and create their layers (Documentation/filesystems/overlayfs.rst)."""

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
    "Template",
    "add_layer",
    "add_overlay",
    "add_read_only",
    "make_layer",
    "make_whiteout",
    "mount_overlay",
]

_DIRECTORIES = (("", 0o700), ("/upper", 0o755), ("/work", 0o700))


class Template(NamedTuple):
    """A directory whose mode and owner the root of a layer gets.

    ``path`` is relative to the descriptor ``fd``, if there is one.
    """

    path: str
    fd: int | None = None


def mount_overlay(
    lower: Sequence[str], layer: str, target: str, *, flags: int = 0, options: Sequence[str] = ()
) -> None:
    """Mount ``lower`` (topmost first) on ``target`` with the writable layer ``layer/upper``.

    ``layer/work`` is for the kernel's use.
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
    """Append what :func:`mount_overlay` does.

    The option ``redirect_dir=on`` lets directories of lower layers be renamed; without it
    rename(2) fails with EXDEV.
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
    """Append mounting an overlay without a writable layer, of at least two lower directories.

    Those of ``options`` that are for writable layers only are left out.
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
    """Escape the separators of lower directories and mount options."""
    for character in "\\:,":
        path = path.replace(character, "\\" + character)
    return path


def make_layer(directory: str, like: str) -> None:
    """Create an empty layer whose root has the mode and owner of the directory ``like``."""
    for name, mode in _DIRECTORIES:
        os.mkdir(f"{directory}{name}", mode)
    owner, mode = _owner_and_mode(Template(like))
    if owner is not None:
        os.chown(f"{directory}/upper", *owner)
    os.chmod(f"{directory}/upper", mode)


def add_layer(batch: SyscallBatch, step: str, directory: str, like: Template) -> None:
    """Append what :func:`make_layer` does; directories that exist already are kept."""
    for name, mode in _DIRECTORIES:
        batch.add(step, "mkdirat", -1, f"{directory}{name}".encode(), mode, go_on=True)
    upper = f"{directory}/upper".encode()
    owner, mode = _owner_and_mode(like)
    if owner is not None:
        batch.add(step, "fchownat", -1, upper, *owner, 0)
    batch.add(step, "fchmodat", -1, upper, mode)


def _owner_and_mode(like: Template) -> tuple[tuple[int, int] | None, int]:
    """Return owner and mode for the root of a layer; no owner if it is the calling user.

    A file cannot be given to an owner without an ID in this user namespace. Then the calling user
    owns it, with the access rights that it has to the original.
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
    """Create a whiteout in a layer, which hides ``path``.

    Raises PermissionError if the layer itself is on an overlay.
    """
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
