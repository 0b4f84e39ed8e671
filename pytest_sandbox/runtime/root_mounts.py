"""The mounts of a container's root: the writable layer, the overlays on it, /dev, /proc and /sys.

Everything is mounted below ``mounts.STAGE`` in a new mount namespace, and becomes the root by
pivot_root(2).
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

from pytest_sandbox.linux import file_mounts, mounts, overlay
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.root_check import RootCheck
from pytest_sandbox.linux.syscall_batch import Result, SyscallBatch
from pytest_sandbox.runtime import etc_files, host_mounts
from pytest_sandbox.runtime.spec import Spec
from pytest_sandbox.runtime.step_error import StepError
from pytest_sandbox.runtime.volumes import add_directories

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.linux.mounts import HostMount
    from pytest_sandbox.runtime.host_resources import HostResources

__all__ = ["ROOT", "RootMounts"]

#: The path of a container's root while it is created.
ROOT = f"{mounts.STAGE}/root"
_OWN = ("proc", "sys", "dev")
_PLAIN = Spec()
#: Settings that name files and directories.
_PLACES = (
    "lower",
    "above",
    "directories",
    "scratch",
    "layer_directory",
    "layer_device",
    "saved",
    "volumes",
    "tmpfs",
    "devices",
)


class RootMounts:
    """The root of one container; each step appends its system calls to the batch.

    ``held_layers`` are detached mounts of committed layers by their key in the layer holder.
    ``hostname`` is the name in the generated files where the spec gives none.
    """

    def __init__(
        self,
        batch: SyscallBatch,
        spec: Spec,
        host: HostResources,
        *,
        hostname: str,
        held_layers: dict[str, int],
    ) -> None:
        self._batch = batch
        self._spec = spec
        self._host = host
        self._hostname = spec.hostname or hostname
        self._held_layers = held_layers
        self._has_node_base = False
        self._etc_point = host.etc_point if spec.is_on_host else _etc_point_of(spec.lower)
        self._etc_sources = etc_files.sources(spec) if self._etc_point is not None else {}
        #: What the container is made from and may change later: a prewarmed container is handed
        #: out only while these are current.
        self.file_stamps = self._file_stamps()
        #: The directory of the writable layer, and a clone of its mount, as descriptors.
        self.layer = self.layer_mount = Result(0)
        self._staged_root = Result(0)
        self._check: RootCheck | None = None
        #: Directories of the host whose attributes are copied, with these attributes.
        self._copied: dict[str, tuple[int, ...]] = {}
        #: The same for those of copied and generated files, whose times are copied too.
        self._parents: list[file_mounts.Stamp] = []

    def _file_stamps(self) -> list[file_mounts.Stamp]:
        found = list(self._etc_sources.values())
        if not self._spec.is_on_host:
            # The store never changes a layer; the lowest may be a directory of the user's
            # (image="DIRECTORY").
            return [file_mounts.stamp(self._spec.lower[-1], content=False), *found]
        for paths in self._host.root.copied.values():
            found += [
                file_mounts.stamp(path, content=True)
                for path in paths
                if path not in self._etc_sources
            ]
        return found

    def is_reusable(self) -> bool:
        """Return whether the calls depend on nothing of the host that :meth:`is_current` does not
        look at: those of a container without volumes and images, whose layer is in memory.
        """
        has_places = any(getattr(self._spec, name) != getattr(_PLAIN, name) for name in _PLACES)
        return not has_places and all(entry.is_mount for entry in self._host.root.below)

    def is_current(self) -> bool:
        """Return whether the host's files and directories, from which the calls were made, are
        unchanged.
        """
        try:
            found = {path: _attributes(os.stat(path)) for path in self._copied}
        except OSError:
            return False
        return found == self._copied and file_mounts.are_current(
            [*self.file_stamps, *self._parents]
        )

    def make_layer(self) -> None:
        """Mount the file system of the writable layer, or bind its directory."""
        step, stage = "make layer", mounts.STAGE.encode()
        spec, batch = self._spec, self._batch
        if spec.layer_device is not None:
            batch.mount(step, os.fsencode(spec.layer_device), stage, b"ext4", sc.MS_NODEV)
        elif spec.layer_directory is not None:
            mounts.add_bind(batch, step, spec.layer_directory, mounts.STAGE)
        else:
            size = b"," + mounts.tmpfs_options(spec.disk) if spec.disk is not None else b""
            batch.mount(step, b"tmpfs", stage, b"tmpfs", sc.MS_NODEV, b"mode=700" + size)
        batch.add(step, "mkdirat", -1, ROOT.encode(), 0o755, go_on=True)
        self.layer = batch.open(step, stage, os.O_RDONLY | os.O_DIRECTORY)
        self.layer_mount = batch.open_mount(step, stage)

    def attach_held_layers(self) -> None:
        """Attach the committed layers that this container is based on, for the overlays to use."""
        step = "attach committed layers"
        for key, fd in self._held_layers.items():
            target = _staged_layer(key).encode()
            flags = sc.MOVE_MOUNT_F_EMPTY_PATH
            self._batch.add(step, "mkdirat", -1, target, 0o700)
            self._batch.add(step, "move_mount", fd, b"", -100, target, flags)

    def mount_root(self) -> None:
        """Mount the overlay of the root itself."""
        step = mounts.MOUNT_ROOT
        lower = [self._host.root.root] if self._spec.is_on_host else list(self._spec.lower)
        missing = [name for name in _OWN if not _is_directory(lower, name)]
        if missing:
            # In a lower layer: they must not be reported as changes that the test made.
            base = f"{mounts.STAGE}/base"
            for directory in ("", *(f"/{name}" for name in missing)):
                self._batch.add(step, "mkdirat", -1, f"{base}{directory}".encode(), 0o755)
            lower.append(base)
        self._add_overlay(step, lower, 0, "", sc.MS_NODEV, like=self._spec.lower[0])

    def mount_below(self) -> None:
        """Mount an overlay over every other file system of the host, or over the directories of
        the host that an image's container has.
        """
        step = mounts.MOUNT_FILE_SYSTEMS
        for number, entry in enumerate(self._entries(), 1):
            # The directories beside a mount (an unprivileged user's) come and go without notice.
            if entry.is_mount or os.path.exists(entry.point):
                self._show_host_mount(step, number, entry)
        for number, directory in self._spec.numbered_directories():
            add_directories(self._batch, step, ROOT, directory)
            self._add_overlay(step, [directory], number, directory, sc.MS_NODEV, like=directory)
        for number, (path, *lower) in self._spec.numbered_scratch():
            add_directories(self._batch, step, ROOT, path)
            add_directories(self._batch, step, mounts.STAGE, "/empty")
            below = [*lower, f"{mounts.STAGE}/empty"]
            self._add_overlay(step, below, number, path, sc.MS_NODEV, like=[*lower, "/usr"][0])

    def _entries(self) -> tuple[HostMount, ...]:
        return self._host.root.below if self._spec.is_on_host else ()

    def _show_host_mount(self, step: str, number: int, entry: HostMount) -> None:
        target = ROOT + entry.point
        if entry.shown in (mounts.WRITABLE, mounts.READ_ONLY):
            flags = entry.flags | sc.MS_NODEV
            self._add_overlay(step, [entry.lower], number, entry.point, flags, like=entry.point)
        elif entry.shown == mounts.COVERED:
            mounts.add_cover(self._batch, step, target)
        else:
            flags = entry.flags | sc.MS_RDONLY | sc.MS_NODEV
            mounts.add_bind(self._batch, step, entry.lower, target, flags=flags)

    def mount_own(self) -> None:
        """Mount the container's own /dev, /proc and /sys."""
        own_sys = self._host.is_root or self._spec.own_network
        tty_group = self._host.root.tty_group
        self._batch.extend(
            _own_mounts(self._spec.shm_size, self._spec.protected, own_sys, tty_group)
        )

    def become_root(self) -> None:
        """Make the overlay the root (pivot_root(2)), and unmount the old root."""
        step = "become root"
        self._staged_root = RootCheck.look_at(self._batch, step, ROOT)
        mounts.add_pivot_root(self._batch, step, ROOT)

    def make_read_only(self) -> None:
        """Remount the overlays read-only, if the spec says so."""
        if not self._spec.read_only:
            return
        step, flags = "make root read only", sc.MS_RDONLY | sc.MS_NODEV
        mounts.add_remount(self._batch, step, "/", flags)
        for entry in self._entries():
            if entry.shown == mounts.WRITABLE:
                mounts.add_remount(self._batch, step, entry.point, flags | entry.flags)

    def add_check(self) -> None:
        """Record which root a process gets that joins this mount namespace: setns(2) changes to
        the root of the namespace, which need not be the overlay.
        """
        self._check = RootCheck.add(self._batch, "verify the root", self._staged_root)

    def is_verified(self) -> bool:
        """Return whether processes that join get the overlay, once the batch has run."""
        return self._check is not None and self._check.is_right()

    def _above(self, point: str) -> list[str]:
        """Return the committed layers directly below the writable one of an overlay, topmost
        first.
        """
        return [place for at, place in self._spec.above if at == point]

    def _like(self, place: str) -> overlay.Template:
        """Return the directory whose mode and owner a new layer above ``place`` copies."""
        held = self._spec.held_layer(place)
        if held is None:
            self._copied[place] = _attributes(os.stat(place))
            return overlay.Template(place)
        key, path = held
        return overlay.Template(path, self._held_layers[key])

    def _staged(self, place: str) -> str:
        """Return the path of a lower directory while the container is created."""
        held = self._spec.held_layer(place)
        return place if held is None else f"{_staged_layer(held[0])}/{held[1]}"

    def _add_overlay(
        self, step: str, lower: list[str], number: int, point: str, flags: int, *, like: str
    ) -> None:
        """Append the mount of the overlay ``number`` at ``point``; ``number`` names its directory
        in the writable layer.
        """
        above = self._above(point)
        lower = [*map(self._staged, above), *self._add_nodes(step, number, point, lower), *lower]
        options = list(self._host.root.options)
        if flags & sc.MS_RDONLY:
            target = ROOT + point
            host_mounts.add_read_only_overlay(self._batch, step, lower, target, flags, options)
            return
        if self._spec.layer_directory is not None:
            # The layer never outlives a crash of the machine, so overlayfs need not sync it.
            options.append("volatile")
        layer = f"{mounts.STAGE}/{number}"
        overlay.add_layer(self._batch, step, layer, self._like([*above, like][0]))
        overlay.add_overlay(
            self._batch, step, lower, layer, ROOT + point, flags=flags, options=options
        )

    def _add_nodes(self, step: str, number: int, point: str, lower: list[str]) -> list[str]:
        """Append calls that make the copied and generated files of an overlay in one more lower
        layer, on top of the others; return its path in a list, which is empty without files.
        """
        nodes = {node.path: node for node in self._copied_nodes(point)}
        if point == self._etc_point:
            generated = etc_files.nodes_of(self._spec, self._hostname, point, self._etc_sources)
            nodes |= {node.path: node for node in generated}
        if not nodes:
            return []
        directory = f"{self._node_base(step)}/nodes-{number}"
        file_mounts.add_nodes(
            self._batch, step, directory, nodes.values(), lambda parent: self._status(lower, parent)
        )
        return [directory]

    def _status(self, lower: Sequence[str], path: str) -> os.stat_result:
        """Return the status of a directory in the topmost layer that has it, or of /."""
        for directory in lower:
            with suppress(FileNotFoundError, NotADirectoryError):
                name = os.path.join(directory, path)
                self._parents.append(file_mounts.stamp(name, content=True))
                return os.stat(name)
        return os.stat("/")

    def _copied_nodes(self, point: str) -> list[file_mounts.Node]:
        paths = self._host.root.copied.get(point, ()) if self._spec.is_on_host else ()
        return [file_mounts.copy_of(path, point) for path in paths]

    def _node_base(self, step: str) -> str:
        """Return the directory for these lower layers.

        A layer on disk may be on a file system that is a lower layer itself, and overlayfs refuses
        lower layers of which one contains another (ELOOP): it gets a tmpfs.
        """
        if self._spec.layer_directory is None:
            return mounts.STAGE
        base = f"{mounts.STAGE}/nodes"
        if not self._has_node_base:
            self._has_node_base = True
            self._batch.add(step, "mkdirat", -1, base.encode(), 0o700)
            self._batch.mount(step, b"tmpfs", base.encode(), b"tmpfs", sc.MS_NODEV, b"mode=700")
        return base


# Half of all calls of a container, and the same for all of a spec: put together once.
@cache
def _own_mounts(shm_size: int, protected: bool, own_sys: bool, tty_group: bool) -> SyscallBatch:
    batch = SyscallBatch()
    mounts.add_dev(batch, mounts.MOUNT_OWN, ROOT, shm_size, tty_group=tty_group)
    mounts.add_proc(batch, mounts.MOUNT_OWN, ROOT, protected=protected)
    mounts.add_sys(batch, mounts.MOUNT_OWN, ROOT, protected=protected, own=own_sys)
    return batch


def _staged_layer(key: str) -> str:
    return f"{mounts.STAGE}/held-{key}"


def _etc_point_of(lower: Sequence[str]) -> str | None:
    """Return the point of the overlay that contains an image's /etc; None if it is no directory."""
    return "" if etc_files.is_etc_directory(lower) else None


def _attributes(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_mode, status.st_uid, status.st_gid


def _is_directory(lower: Sequence[str], name: str) -> bool:
    """Return whether the root has a directory of this name.

    Raises :class:`StepError` if it has something else of this name.
    """
    status = etc_files.topmost_status(lower, name)
    if status is not None and not stat.S_ISDIR(status.st_mode):
        raise StepError(
            mounts.MOUNT_ROOT,
            errno.ENOTDIR,
            "the root file system has something other than a directory there",
            f"/{name}",
        )
    return status is not None
