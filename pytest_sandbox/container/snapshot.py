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
import json
import os
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_sandbox.container.builder import as_builder
from pytest_sandbox.container.layer import opened_layer
from pytest_sandbox.container.lifecycle import prepare
from pytest_sandbox.container.processes import list_processes
from pytest_sandbox.container.snapshot_copy import copy_directory, copy_to_snapshot
from pytest_sandbox.errors import ImageError, SetupError, UnsupportedError
from pytest_sandbox.image.image import Image
from pytest_sandbox.image.index import LayerInfo
from pytest_sandbox.image.manifest import make_config
from pytest_sandbox.image.reference import parse_reference
from pytest_sandbox.image.store import Store
from pytest_sandbox.image.transaction import Transaction
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
            "history": [*(document.get("history") or ()), *[_step() for _ in self.snapshots]],
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


def commit(handle: Handle, name: str | None) -> Image:
    """Commit the writable layer of a running or paused container.

    Raises :class:`ImageError` for an invalid name.
    """
    full = parse_reference(name).full if name else ""
    if not full and handle.committed is not None:
        return _image(handle, handle.committed)
    if not full and handle.spec.layers is None and _is_idle(handle):
        with contextlib.suppress(SetupError):  # the layer is on disk: it is copied below
            return _move(handle)
    with _paused(handle):
        if full or handle.spec.layers is not None:
            return _store(handle, full)
        return _image(handle, _copy(handle))


def commit_to_store(handle: Handle) -> Image:
    """Copy the writable layer of a running container to the image store, as an image without a
    name: `pytest-sandbox prune` removes it while no container uses it.
    """
    with _paused(handle):
        return _store(handle, "")


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


def _step() -> dict[str, str]:
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "created_by": "pytest-sandbox commit",
    }


def _store(handle: Handle, name: str) -> Image:
    """Copy the layer, and the snapshots below it, into the image store."""
    with opened_layer(handle) as (layer, overlays):
        below = [*reversed(handle.snapshots), *_snapshots_of(handle.rootfs.image)]
        parts = [
            (layer, _points(handle, overlays)),
            *((one.directory, one.points) for one in below),
        ]
        with Transaction(Store()) as transaction:
            builder = handle.user_namespaces()[1]
            layers = [
                (point, _store_layer(transaction, builder, directory, number))
                for directory, points in reversed(parts)
                for number, point in points.items()
            ]
            image_id = _register(transaction, handle, [one for one in layers if one[1]], name)
    return Image.get(name or image_id)


def _store_layer(transaction: Transaction, builder: int, directory: int, number: str) -> str:
    """Store the layer of one overlay under a new key; return the key, "" for an empty layer.

    Without root, the files in the store belong to this user, whatever their owner inside: another
    owner's files could not be removed later.
    """
    source = f"{process.path_of(directory)}/{number}/upper"
    if number != "0" and not as_builder(builder, lambda: os.listdir(source)):
        return ""
    key = f"sha256:{secrets.token_hex(32)}"

    def make(target: str) -> LayerInfo:
        os.rmdir(target)
        return LayerInfo(
            *as_builder(builder, lambda: _copy_measured(source, target, owners=builder < 0))
        )

    transaction.add_layer(key, make)
    return key


def _copy_measured(source: str, target: str, *, owners: bool) -> tuple[int, int]:
    """Copy a directory; return the size of the copy and the number of its entries."""
    size, entries = copy_directory(source, target, owners=owners)
    return size, max(entries, 1)


def _register(
    transaction: Transaction, handle: Handle, layers: list[tuple[str, str]], name: str
) -> str:
    """Add an image of stored layers (mount point and key of each) to the store; return its id."""
    image = handle.rootfs.image
    parent = _stored_parent(image)
    history = [*(image.history if image else ()), _step()]
    keys = [*(parent.layers if parent else ()), *(key for _point, key in layers)]
    document = {**(parent.document if parent else {}), "history": history}
    config = make_config(keys, history, document.get("config"))
    if parent and parent.document:
        document["rootfs"] = {"type": "layers", "diff_ids": keys}
        config = json.dumps(document).encode()
    base = parent.base or parent.directory if parent else "host"
    points = {key: point for point, key in layers} | (dict(parent.points) if parent else {})
    return transaction.register(config, keys, [name] if name else [], base=base, points=points)
