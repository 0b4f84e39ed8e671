"""Volumes: files and directories of the host that are bind-mounted into a container; its file
systems in memory; and its device nodes, which only these mounts allow to be opened.
"""

from __future__ import annotations

import os
import stat
from functools import partial
from typing import TYPE_CHECKING

from pytest_sandbox.linux import mounts
from pytest_sandbox.linux import syscall as sc

if TYPE_CHECKING:
    from pytest_sandbox.linux.syscall_batch import Result, SyscallBatch
    from pytest_sandbox.runtime.spec import Spec

__all__ = ["Volumes", "add_directories"]

#: A read-only mount protects mode, owner and attributes of the host's node; the device can be
#: written nevertheless.
_DEVICE = sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NOEXEC


class Volumes:
    """The volumes and devices of one container, opened on the host and attached inside."""

    def __init__(self, batch: SyscallBatch, spec: Spec) -> None:
        self._batch = batch
        # Devices come last: a volume may cover the directory that they are in.
        self._mounts = [
            *((source, target, _volume_attributes(ro)) for source, target, ro in spec.volumes),
            *((source, target, _DEVICE) for source, target in spec.devices),
        ]
        self._devices = len(spec.devices)
        self._tmpfs = spec.tmpfs
        self._sources: list[Result] = []

    def open(self) -> None:
        """Clone each source as a detached mount (open_tree(2)).

        This comes before anything of the container is mounted, so no link inside can redirect it.
        """
        flags = sc.OPEN_TREE_CLONE | sc.OPEN_TREE_CLOEXEC | sc.AT_RECURSIVE
        self._sources = [
            self._batch.add("open volumes", "open_tree", -100, os.fsencode(source), flags)
            for source, _target, _attributes in self._mounts
        ]

    def attach(self) -> None:
        """Attach the detached mounts, and mount file systems in memory, outer targets first.

        This comes after pivot_root(2), so every path, and every link in it, resolves inside the
        container.
        """
        opened = list(zip(self._sources, self._mounts, strict=True))
        devices = opened[len(opened) - self._devices :]
        volumes = opened[: len(opened) - self._devices]
        steps = [
            *((mount[1], partial(self._attach_source, fd, mount)) for fd, mount in volumes),
            *((one[0], partial(self._attach_tmpfs, *one)) for one in self._tmpfs),
        ]
        for _target, step in sorted(steps, key=lambda one: one[0]):
            step()
        for fd, mount in devices:
            self._attach_source(fd, mount)

    def _attach_source(self, fd: Result, mount: tuple[str, str, int]) -> None:
        source, target, attributes = mount
        self._add_mount_point(target, is_directory=os.path.isdir(source))
        mounts.add_attributes(self._batch, "attach volumes", fd, attributes)
        self._move(fd, target)

    def _attach_tmpfs(
        self, target: str, size: int | None, mode: int, read_only: bool, executable: bool
    ) -> None:
        """Make a tmpfs (fsopen(2)), and attach it."""
        step, batch = "mount tmpfs", self._batch
        options = [b"mode=%o" % mode]
        if size is not None:
            options += mounts.tmpfs_options(size).split(b",")
        context = batch.add(step, "fsopen", b"tmpfs", sc.FSOPEN_CLOEXEC)
        for option in options:
            key, _, value = option.partition(b"=")
            batch.add(step, "fsconfig", context, sc.FSCONFIG_SET_STRING, key, value, 0)
        batch.add(step, "fsconfig", context, sc.FSCONFIG_CMD_CREATE, None, None, 0)
        attributes = sc.MOUNT_ATTR_NODEV | sc.MOUNT_ATTR_NOSUID
        attributes |= sc.MOUNT_ATTR_RDONLY if read_only else 0
        attributes |= 0 if executable else sc.MOUNT_ATTR_NOEXEC
        mounted = batch.add(step, "fsmount", context, sc.FSMOUNT_CLOEXEC, attributes)
        batch.close(step, context)
        self._add_mount_point(target, is_directory=True)
        self._move(mounted, target)

    def _move(self, fd: Result, target: str) -> None:
        step, batch = "attach volumes", self._batch
        # A magic link (/proc/PID/fd/N) is the only path that leads out of the root: openat2(2).
        how = sc.open_how(os.O_PATH, sc.RESOLVE_NO_MAGICLINKS)
        point = batch.add(step, "openat2", -100, os.fsencode(target), how, len(how))
        flags = sc.MOVE_MOUNT_F_EMPTY_PATH | sc.MOVE_MOUNT_T_EMPTY_PATH
        batch.add(step, "move_mount", fd, b"", point, b"", flags)
        for opened in (fd, point):
            batch.close(step, opened)

    def _add_mount_point(self, target: str, *, is_directory: bool) -> None:
        step = "attach volumes"
        directory = target if is_directory else os.path.dirname(target)
        add_directories(self._batch, step, "", directory)
        if not is_directory:
            mode = stat.S_IFREG | 0o644
            self._batch.add(step, "mknodat", -1, os.fsencode(target), mode, 0, go_on=True)


def _volume_attributes(read_only: bool) -> int:
    attributes = sc.MOUNT_ATTR_NODEV | sc.MOUNT_ATTR_NOSUID
    return attributes | sc.MOUNT_ATTR_RDONLY if read_only else attributes


def add_directories(batch: SyscallBatch, step: str, root: str, directory: str) -> None:
    """Append calls that make a directory below ``root``, and its parents.

    A call that fails does not end the batch: the directory may exist, and whatever uses it fails
    with a better error otherwise.
    """
    parts = directory.strip("/").split("/")
    for end in range(1, len(parts) + 1):
        path = os.fsencode(f"{root}/{'/'.join(parts[:end])}")
        batch.add(step, "mkdirat", -1, path, 0o755, go_on=True)
