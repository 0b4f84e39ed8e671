"""Commit the writable layer of a container as an image.

A layer in memory is moved, as it is, to the launcher's layer holder: containers can be started from
it at once, and the committed container gets a new layer above it when something is next done in it.
Nothing is copied, so a commit takes the same time for one file and for a hundred thousand. If
processes still run inside, whose open files cannot be moved, the container is paused and the layer
copied. With a name, the layer is copied into the image store, for other processes and later
sessions.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_sandbox.container.layer import opened_layer
from pytest_sandbox.container.lifecycle import prepare
from pytest_sandbox.container.processes import list_processes
from pytest_sandbox.container.snapshot_copy import copy_to_snapshot
from pytest_sandbox.container.store_commit import Base, Details, step, store
from pytest_sandbox.errors import ImageError, SetupError, UnsupportedError
from pytest_sandbox.image.image import Image
from pytest_sandbox.linux import process
from pytest_sandbox.linux.signals import Deferred

if TYPE_CHECKING:
    import builtins
    from collections.abc import Iterator

    from pytest_sandbox.client.snapshots import Snapshot
    from pytest_sandbox.container.handle import Handle
    from pytest_sandbox.container.layer import Overlay

__all__ = ["CommittedImage", "commit", "commit_to_store"]


@dataclass(frozen=True)
class CommittedImage(Image):
    """An image in the memory of this process's launcher, which ends with the process.

    ``snapshots`` are its layers, topmost first, above ``parent`` (None: the host's root).
    """

    snapshots: tuple[Snapshot, ...] = ()
    parent: Image | None = None

    @property
    def document(self) -> dict[str, Any]:
        """The configuration of the parent, with the commits added to its history."""
        document = self.parent.document if self.parent else {}
        return {
            **document,
            "history": [*(document.get("history") or ()), *[step() for _ in self.snapshots]],
        }

    def lower_directories(self) -> tuple[str, ...]:
        """Return the directories of the parent."""
        return self.parent.lower_directories() if self.parent else ("/",)

    def above(self) -> tuple[tuple[str, str], ...]:
        """Return mount point and directory of each committed layer, topmost first."""
        own = [pair for one in self.snapshots for pair in one.above]
        return (*own, *(self.parent.above() if self.parent else ()))

    @property
    def base(self) -> str:
        """``"host"`` if the image is based on the host's root."""
        return self.parent.base if self.parent else "host"

    def hold(self) -> int:
        """Keep the parent from being removed; return a descriptor, or -1.

        Raises :class:`ImageError` if the launcher has ended, and the layers with it.
        """
        if any(not one.launcher.is_alive for one in self.snapshots):
            raise ImageError(
                f"the image {self.reference} was in memory, and is lost with its launcher. "
                "Commit again, or with a name."
            )
        return self.parent.hold() if self.parent else -1

    def remove(self) -> builtins.list[str]:
        """Do nothing: the memory is freed when no container and no object refers to the image."""
        return []


def commit(handle: Handle, details: Details) -> Image:
    """Commit the writable layer of a running or paused container; to the store if there are any
    details.
    """
    is_stored = details != Details()
    if not is_stored and handle.committed is not None:
        return _image(handle, handle.committed)
    if not is_stored and handle.spec.layers is None and _is_idle(handle):
        with contextlib.suppress(SetupError):  # the layer is on disk: it is copied below
            return _move(handle)
    with _paused(handle):
        if is_stored or handle.spec.layers is not None:
            return _store(handle, details)
        return _image(handle, _copy(handle))


def commit_to_store(handle: Handle, details: Details | None = None) -> Image:
    """Copy the writable layer of a running container to the image store; `pytest-sandbox prune`
    removes an image without a name while no container uses it.
    """
    with _paused(handle):
        return _store(handle, details or Details())


def _is_idle(handle: Handle) -> bool:
    """Return whether no process but init runs inside."""
    if handle.status != "running":
        return False
    # The cgroup, if there is one, is faster to read than /proc.
    return handle.cgroup.pids() == (handle.pid,) or not list_processes(handle)


@contextlib.contextmanager
def _paused(handle: Handle) -> Iterator[None]:
    if handle.status == "paused":
        yield
        return
    try:
        _pause_unless_idle(handle)
        yield
    finally:  # also after an interrupt in the middle of the pause
        with Deferred():
            handle.unpause()


def _pause_unless_idle(handle: Handle) -> None:
    try:
        handle.pause()
    except UnsupportedError:  # no cgroups here
        if not _is_idle(handle):
            raise


def _move(handle: Handle) -> Image:
    """Move the layer to the layer holder."""
    launcher = handle.launcher
    # After an interrupt the next commit uses the same key.
    handle.snapshot_key = handle.snapshot_key or secrets.token_hex(8)
    launcher.request({"op": "hold_layer", "id": handle.id, "key": handle.snapshot_key})
    with opened_layer(handle) as (layer, overlays):
        points = _points(handle, overlays)
        with Deferred():
            handle.committed, handle.snapshot_key = (
                launcher.snapshots.add(launcher, handle.snapshot_key, os.dup(layer), points),
                "",
            )
    image = _image(handle, handle.committed)
    prepare(handle.settings.replace(image=image))  # a container is likely to start from it
    return image


def _points(handle: Handle, overlays: dict[str, Overlay]) -> dict[str, str]:
    """Return the mount points of the overlays that belong to an image: without the host's
    directories over it.
    """
    return {
        number: one.point for number, one in overlays.items() if one.point not in handle.directories
    }


def _copy(handle: Handle) -> Snapshot:
    """Copy the layer to the layer holder."""
    with opened_layer(handle) as (layer, overlays):
        points = _points(handle, overlays)
        sources = {number: f"{process.path_of(layer)}/{number}/upper" for number in points}
        return copy_to_snapshot(handle.launcher, points, sources)


def _image(handle: Handle, snapshot: Snapshot) -> Image:
    below = handle.rootfs.image
    size = _used_bytes(snapshot) + (below.size if below else 0)
    image_id = f"sha256:{snapshot.key.ljust(64, '0')}"
    own = [snapshot, *(one for one in reversed(handle.snapshots) if one is not snapshot)]
    return CommittedImage(
        image_id,
        image_id,
        (*(below.layers if below else ()), image_id),
        size,
        snapshots=(*own, *_snapshots_of(below)),
        parent=_stored_parent(below),
    )


def _used_bytes(snapshot: Snapshot) -> int:
    used = os.fstatvfs(snapshot.directory)
    return (used.f_blocks - used.f_bfree) * used.f_frsize


def _snapshots_of(image: Image | None) -> tuple[Snapshot, ...]:
    return image.snapshots if isinstance(image, CommittedImage) else ()


def _stored_parent(image: Image | None) -> Image | None:
    """Return the stored image below the committed layers of an image, or the image itself."""
    return image.parent if isinstance(image, CommittedImage) else image


def _store(handle: Handle, details: Details) -> Image:
    """Copy the layer, and the snapshots below it, into the image store."""
    image = handle.rootfs.image
    with opened_layer(handle) as (layer, overlays):
        below = [*reversed(handle.snapshots), *_snapshots_of(image)]
        parts = [
            (layer, _points(handle, overlays)),
            *((one.directory, one.points) for one in below),
        ]
        history = image.history if image else ()
        base = Base(_stored_parent(image), tuple(history))
        return store(parts, base, details, builder=handle.user_namespaces()[1])
