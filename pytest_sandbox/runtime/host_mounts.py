"""How a container on the host's root shows the mounts below it.

No socket, FIFO or lock in the container may be the host's. So each mount is a lower layer of an
overlay, copied, or covered. A file system that cannot be a lower layer is bound read-only if it
holds neither sockets nor FIFOs.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_sandbox.linux import file_mounts, mounts, overlay
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.syscall_batch import SyscallBatch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_sandbox.linux.host_root import HostRoot
    from pytest_sandbox.linux.mounts import HostMount

__all__ = ["add_read_only_overlay", "shown"]

# FAT has neither sockets nor FIFOs. The others are images that were packed once: nobody can be
# listening at a socket in one.
_WITHOUT_SOCKETS = frozenset(
    {"cramfs", "erofs", "exfat", "iso9660", "msdos", "romfs", "squashfs", "udf", "vfat"}
)
#: Bytes of all files that are copied, for each container.
_MOST_COPIED = 4 << 20


def shown(root: HostRoot) -> HostRoot:
    """Return the host's root with what is laid over it tried, so that each entry says how it is
    shown.

    What goes away meanwhile is left out: other tools' mounts come and go.
    """
    below: list[HostMount] = []
    copied: dict[str, list[str]] = {}
    refused: list[str] = []
    room = _MOST_COPIED
    for entry in root.below:
        around = _around(entry.point, below)
        if around is not None and _hides(around):
            continue  # it is covered, or there is no directory to mount it on
        with suppress(FileNotFoundError, NotADirectoryError):
            status = os.stat(entry.point)
            if file_mounts.is_unreachable(status.st_mode):
                refused.append(entry.point)
            how = _how(entry, status, room, root.options)
            if how == mounts.COPIED:
                room -= status.st_size if stat.S_ISREG(status.st_mode) else 0
                copied.setdefault(around.point if around else "", []).append(entry.point)
            else:
                refused += [entry.point] * (how == mounts.COVERED)
                below.append(replace(entry, is_directory=stat.S_ISDIR(status.st_mode), shown=how))
    return replace(
        root,
        below=tuple(below),
        copied={point: tuple(paths) for point, paths in copied.items()},
        refused=tuple(sorted({*root.refused, *refused})),
    )


def _around(point: str, below: Iterable[HostMount]) -> HostMount | None:
    """Return the innermost entry that contains ``point``; None for the root."""
    found = [entry for entry in below if entry.is_directory and point.startswith(f"{entry.point}/")]
    return max(found, key=lambda entry: len(entry.point), default=None)


def _hides(around: HostMount) -> bool:
    """Return whether an entry is shown without what is mounted below it.

    A split directory is bound as its skeleton, which has a place for each mount.
    """
    is_bound = around.shown == mounts.BOUND
    return around.shown == mounts.COVERED or (is_bound and not around.source)


def _how(entry: HostMount, status: os.stat_result, room: int, options: tuple[str, ...]) -> str:
    if file_mounts.is_unreachable(status.st_mode):
        return mounts.COPIED
    if stat.S_ISREG(status.st_mode):
        return mounts.COPIED if status.st_size <= min(room, file_mounts.MAX_SIZE) else mounts.BOUND
    if not stat.S_ISDIR(status.st_mode):
        return mounts.BOUND  # a device cannot be opened there: it is bound with nodev
    # A split directory has mounts below it, which an unprivileged user may not leave out of a bind
    # mount (mount_namespaces(7), EINVAL of mount(2)): its skeleton is on another file system.
    if not entry.source and (entry.fstype in _WITHOUT_SOCKETS or _stays_empty(entry)):
        return mounts.BOUND
    how = mounts.READ_ONLY if entry.flags & sc.MS_RDONLY else mounts.WRITABLE
    if _works(entry, how, options):
        return how
    # A directory of the root itself, in a container in a container whose root is an overlay:
    # without it there is no root.
    return mounts.COVERED if entry.is_mount else mounts.BOUND


def _stays_empty(entry: HostMount) -> bool:
    """Return whether it is empty and stays so: a bind mount costs a fifth of an overlay."""
    return entry.is_immutable and not os.listdir(entry.point)


def _works(entry: HostMount, how: str, options: tuple[str, ...]) -> bool:
    """Return whether the kernel takes an entry as a lower layer.

    It refuses file systems such as vfat (d_revalidate, case folding), and overlays that are stacked
    too deep.
    """
    batch, step, stage = SyscallBatch(), "try", mounts.STAGE
    mounts.add_private(batch, step)
    batch.mount(step, b"tmpfs", stage.encode(), b"tmpfs", 0)
    if how == mounts.READ_ONLY:
        add_read_only_overlay(batch, step, [entry.lower], entry.point, 0, options)
    else:
        overlay.add_layer(batch, step, f"{stage}/0", overlay.Template(entry.point))
        overlay.add_overlay(batch, step, [entry.lower], f"{stage}/0", entry.point, options=options)
    pid, pidfd = batch.spawn(sc.CLONE_NEWNS)
    os.close(pidfd)
    os.waitpid(pid, 0)
    return batch.failure() is None


def add_read_only_overlay(
    batch: SyscallBatch,
    step: str,
    lower: list[str],
    target: str,
    flags: int,
    options: Iterable[str],
) -> None:
    """Lay an overlay without a writable layer over a directory: what is opened there is the
    overlay's, not the host's.

    The kernel takes two lower directories at least, so the last one is empty.
    """
    empty = f"{mounts.STAGE}/empty"
    batch.add(step, "mkdirat", -1, empty.encode(), 0o755, go_on=True)
    overlay.add_read_only(batch, step, [*lower, empty], target, flags=flags, options=options)
