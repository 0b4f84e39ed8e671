"""The root directory that a process gets when it enters a mount namespace (setns(2)): the
namespace's, whatever the caller's was.

In a chroot (schroot, mock, arch-chroot) the two differ: what pivot_root(2) makes the root there is
the root of the chroot only, and everybody who enters the mount namespace afterwards finds himself
outside of it, on the host's own root. So a launcher in a chroot first makes the chroot the root of
a mount namespace of its own, and each container's root is looked at through setns(2) before it is
used.
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
# <linux/stat.h>: STATX_BASIC_STATS | STATX_MNT_ID, and where inode, device and mount stand in
# struct statx.
_MASK = 0x17FF
_STATX_SIZE = 256
_INODE, _DEVICE, _MOUNT = 32, 136, 144
_STATFS_SIZE = 120


def _add_statx(batch: SyscallBatch, step: str, path: bytes) -> Result:
    return batch.add(step, "statx", -100, path, 0, _MASK, bytes(_STATX_SIZE))


def _add_enter_own(batch: SyscallBatch, step: str) -> None:
    """Set root and working directory to the root of the mount namespace that the process is in."""
    fd = batch.open(step, _NAMESPACE, os.O_RDONLY)
    batch.add(step, "setns", fd, sc.CLONE_NEWNS)
    batch.close(step, fd)


def _identity(batch: SyscallBatch, result: Result) -> tuple[int, int, int, int]:
    """Return inode, device and mount of what statx(2) looked at."""
    status = batch.argument(result, 4, _STATX_SIZE)
    (inode,) = struct.unpack_from("=Q", status, _INODE)
    major, minor, mount = struct.unpack_from("=IIQ", status, _DEVICE)
    return inode, major, minor, mount


@dataclass(frozen=True, slots=True)
class RootCheck:
    """What a batch finds when it enters its own mount namespace, beside what it has made the
    root.
    """

    batch: SyscallBatch
    made: Result
    entered: Result
    type: Result

    @classmethod
    def look_at(cls, batch: SyscallBatch, step: str, root: str) -> Result:
        """Append the look at what is about to become the root."""
        return _add_statx(batch, step, os.fsencode(root))

    @classmethod
    def add(cls, batch: SyscallBatch, step: str, made: Result) -> RootCheck:
        """Append the entering, and the look at what is the root then."""
        _add_enter_own(batch, step)
        entered = _add_statx(batch, step, b"/")
        return cls(batch, made, entered, batch.add(step, "statfs", b"/", bytes(_STATFS_SIZE)))

    def is_right(self) -> bool:
        """Return whether who enters is in the overlay that was made, by file system, device, inode
        and mount, once the batch has run.
        """
        (kind,) = struct.unpack_from("=q", self.batch.argument(self.type, 1, _STATFS_SIZE))
        return kind == _OVERLAY and _identity(self.batch, self.made) == _identity(
            self.batch, self.entered
        )


def is_chrooted() -> bool:
    """Return whether the calling process's root is another one than its mount namespace's.

    Raises :class:`OSError` where the process lacks the right to enter a mount namespace.
    """
    batch, step = SyscallBatch(), "look at the root"
    before = _add_statx(batch, step, b"/")
    _add_enter_own(batch, step)
    after = _add_statx(batch, step, b"/")
    batch.run_in_child(sc.CLONE_NEWNS)  # a copy, which is ours to enter
    return _identity(batch, before) != _identity(batch, after)


def leave_chroot() -> None:
    """Make the calling, single-threaded process's root that of a mount namespace of its own, for
    good.

    What the host mounts below the root later is seen there, and nothing that is mounted here is
    seen by the host. Raises :class:`OSError`.
    """
    batch, step = SyscallBatch(), "make the root of this chroot that of a mount namespace"
    batch.add(step, "unshare", sc.CLONE_NEWNS)
    tree = batch.add(
        step, "open_tree", -100, b"/", sc.OPEN_TREE_CLONE | sc.OPEN_TREE_CLOEXEC | sc.AT_RECURSIVE
    )
    _add_enter_own(batch, step)
    batch.mount(step, None, b"/", None, sc.MS_REC | sc.MS_SLAVE)
    batch.add(step, "move_mount", tree, b"", -100, b"/", sc.MOVE_MOUNT_F_EMPTY_PATH)
    batch.add(step, "fchdir", tree)
    batch.close(step, tree)
    batch.add(step, "pivot_root", b".", b".")
    batch.add(step, "umount2", b".", sc.MNT_DETACH)
    batch.add(step, "chdir", b"/")
    batch.mount(step, None, b"/", None, sc.MS_REC | sc.MS_SLAVE)
    batch.run()
