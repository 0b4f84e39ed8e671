"""Directories of layers as they lie in the store: many folded into one, removal."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING, Final

from pytest_sandbox.image.layer_writer import is_whiteout

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["fold", "is_opaque"]

_OPAQUE: Final = (b"trusted.overlay.opaque", b"user.overlay.opaque")
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def is_opaque(directory: bytes) -> bool:
    """Whether the overlay shows nothing of what lies below this directory."""
    return any(_attribute(directory, name) == b"y" for name in _OPAQUE)


def _attribute(path: bytes, name: bytes) -> bytes | None:
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError:
        return None


def _describe(target: bytes, source: bytes, status: os.stat_result) -> None:
    """Copy a directory's owner, attributes, mode and times, as far as this user may."""
    with contextlib.suppress(PermissionError):
        os.chown(target, status.st_uid, status.st_gid)
    for name in os.listxattr(source):
        if not name.startswith(("trusted.overlay.", "user.overlay.")):
            with contextlib.suppress(OSError):
                os.setxattr(target, name, os.getxattr(source, name))
    os.chmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def fold(layers: Sequence[bytes], target: bytes) -> None:
    """Make ``target``, an empty directory, show what an overlay of ``layers`` (topmost first)
    shows; files are hard links, and take no room.

    The result may lie at the bottom of an overlay: deletions have been applied, and are gone.
    """
    pending = [(target, list(layers))]
    finished = []
    while pending:
        made, sources = pending.pop()
        finished.append((made, sources[0]))
        for name, found in _merged(sources).items():
            path = os.path.join(made, name)
            if stat.S_ISDIR(os.lstat(found[0]).st_mode):
                os.mkdir(path, 0o700)
                pending.append((path, found))
            else:
                os.link(found[0], path, follow_symlinks=False)
    for made, source in reversed(finished):  # times last, and those inside first
        _describe(made, source, os.lstat(source))


def _merged(sources: Sequence[bytes]) -> dict[bytes, list[bytes]]:
    """Map each visible name to the paths that it consists of: one file, or directories down to the
    first that hides the rest.
    """
    found: dict[bytes, list[bytes]] = {}
    closed: set[bytes] = set()
    for source in sources:
        with os.scandir(source) as scanned:
            entries = list(scanned)
        for entry in entries:
            if entry.name in closed:
                continue
            is_directory = entry.is_dir(follow_symlinks=False)
            if not is_directory or is_opaque(entry.path):
                closed.add(entry.name)
            if not is_whiteout(entry.stat(follow_symlinks=False)) and (
                is_directory or entry.name not in found
            ):
                found.setdefault(entry.name, []).append(entry.path)
    return found
