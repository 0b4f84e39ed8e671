"""Check that a process that joins a mount namespace gets the container's root directory.

setns(2) sets the root directory to that of the mount namespace. For a process in a chroot (schroot,
mock, arch-chroot) it is a different one: there pivot_root(2) would replace the root of the chroot
only, and processes that join the container's mount namespace would be on the host's root file
system, outside of the container. So a launcher in a chroot first makes the chroot the root of a new
mount namespace, and each container's root is checked through setns(2) before it is used.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.syscall_batch import SyscallBatch

if TYPE_CHECKING:
    from pytest_sandbox.linux.syscall_batch import Result

__all__ = ["RootCheck", "is_chrooted", "leave_chroot"]

_NAMESPACE = b"/proc/self/ns/mnt"
_OVERLAY = 0x794C7630  # OVERLAYFS_SUPER_MAGIC, <linux/magic.h>
# <linux/stat.h>: STATX_BASIC_STATS | STATX_MNT_ID, and offsets in struct statx.
_MASK = 0x17FF
_STATX_SIZE = 256
_INODE, _DEVICE, _MOUNT = 32, 136, 144
_STATFS_SIZE = 120


def _add_statx(batch: SyscallBatch, step: str, path: bytes) -> Result:
    return batch.add(step, "statx", -100, path, 0, _MASK, bytes(_STATX_SIZE))


def _add_rejoin(batch: SyscallBatch, step: str) -> None:
    """Append setting root and working directory to the root of the process's mount namespace."""
    fd = batch.open(step, _NAMESPACE, os.O_RDONLY)
    batch.add(step, "setns", fd, sc.CLONE_NEWNS)
    batch.close(step, fd)


def _identity(batch: SyscallBatch, result: Result) -> tuple[int, int, int, int]:
    """Return inode, device (major, minor) and mount ID from the result of statx(2)."""
    status = batch.argument(result, 4, _STATX_SIZE)
    (inode,) = struct.unpack_from("=Q", status, _INODE)
    major, minor, mount = struct.unpack_from("=IIQ", status, _DEVICE)
    return inode, major, minor, mount


@dataclass(frozen=True, slots=True)
class RootCheck:
    """The results of a batch that compares the overlay it has mounted with the root after setns."""

    batch: SyscallBatch
    made: Result
    entered: Result
    type: Result

    @classmethod
    def look_at(cls, batch: SyscallBatch, step: str, root: str) -> Result:
        """Append statx(2) of the directory that will become the root."""
        return _add_statx(batch, step, os.fsencode(root))

    @classmethod
    def add(cls, batch: SyscallBatch, step: str, made: Result) -> RootCheck:
        """Append joining the mount namespace and statx(2) of its root."""
        _add_rejoin(batch, step)
        entered = _add_statx(batch, step, b"/")
        return cls(batch, made, entered, batch.add(step, "statfs", b"/", bytes(_STATFS_SIZE)))

    def is_right(self) -> bool:
        """Return whether the root is the overlay that was mounted, once the batch has run.

        File system type, device, inode and mount ID are compared.
        """
        (kind,) = struct.unpack_from("=q", self.batch.argument(self.type, 1, _STATFS_SIZE))
        return kind == _OVERLAY and _identity(self.batch, self.made) == _identity(
            self.batch, self.entered
        )


def is_chrooted() -> bool:
    """Return whether the calling process's root is not the root of its mount namespace.

    Raises OSError if the process may not join a mount namespace.
    """
    batch, step = SyscallBatch(), "look at the root"
    before = _add_statx(batch, step, b"/")
    _add_rejoin(batch, step)
    after = _add_statx(batch, step, b"/")
    batch.run_in_child(sc.CLONE_NEWNS)  # in a copy of the mount namespace, which may be joined
    return _identity(batch, before) != _identity(batch, after)


def leave_chroot() -> None:
    """Move the calling single-threaded process to a new mount namespace with its root as the root.

    Later mounts of the host below this root propagate to it, and none propagate back. Raises
    OSError.
    """
    batch, step = SyscallBatch(), "make the root of this chroot that of a mount namespace"
    batch.add(step, "unshare", sc.CLONE_NEWNS)
    tree = batch.add(
        step, "open_tree", -100, b"/", sc.OPEN_TREE_CLONE | sc.OPEN_TREE_CLOEXEC | sc.AT_RECURSIVE
    )
    _add_rejoin(batch, step)
    batch.mount(step, None, b"/", None, sc.MS_REC | sc.MS_SLAVE)
    batch.add(step, "move_mount", tree, b"", -100, b"/", sc.MOVE_MOUNT_F_EMPTY_PATH)
    batch.add(step, "fchdir", tree)
    batch.close(step, tree)
    batch.add(step, "pivot_root", b".", b".")
    batch.add(step, "umount2", b".", sc.MNT_DETACH)
    batch.add(step, "chdir", b"/")
    batch.mount(step, None, b"/", None, sc.MS_REC | sc.MS_SLAVE)
    batch.run()
