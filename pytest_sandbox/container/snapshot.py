"""A container's writable layer, frozen as an image.

In memory the layer is *taken*: it goes to the launcher's shelf as it is, containers lie on it at
once, and the committed container gets a new layer above it with the first thing that is done in it.
Nothing is copied, so it costs the same for one file and for a hundred thousand. Where something
still runs inside, whose open files cannot be moved, the layer is copied while all of it is paused.
With a name the layer is copied into the store, for other processes and later sessions.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pytest_sandbox.container.fork import as_builder
from pytest_sandbox.errors import ImageError, SetupError, UnsupportedError
from pytest_sandbox.image.image import Image
from pytest_sandbox.image.index import LayerFacts
from pytest_sandbox.image.manifest import synthesised
from pytest_sandbox.image.reference import parse_reference
from pytest_sandbox.image.store import Store
from pytest_sandbox.image.transaction import Adding
from pytest_sandbox.linux import process
from pytest_sandbox.linux.copying import Copied, copy_tree
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.runtime.spec import SHELF

if TYPE_CHECKING:
    import builtins
    from collections.abc import Iterator

    from pytest_sandbox.client.session import LauncherClient
    from pytest_sandbox.client.snapshots import Snapshot
    from pytest_sandbox.container.container import Container

__all__ = ["Committed", "bring", "commit"]


@dataclass(frozen=True)
class Committed(Image):
    """An image of this process: layers on the shelf, topmost first, over what their container lay
    on. It is gone with the process.
    """

    shelves: tuple[Snapshot, ...] = ()
    on: Image | None = None

    @property
    def document(self) -> dict[str, Any]:
        """The configuration of what it lies on, with this step in its history."""
        below = self.on.document if self.on else {}
        return {
            **below,
            "history": [*(below.get("history") or ()), *[_step() for _ in self.shelves]],
        }

    def lower_directories(self) -> tuple[str, ...]:
        """Return what the committed layers lie on."""
        return self.on.lower_directories() if self.on else ("/",)

    def above(self) -> tuple[tuple[str, str], ...]:
        """Return the committed layers."""
        mine = [pair for one in self.shelves for pair in one.above]
        return (*mine, *(self.on.above() if self.on else ()))

    @property
    def base(self) -> str:
        """``"host"`` where it lies on the host's own root."""
        return self.on.base if self.on else "host"

    def hold(self) -> int:
        """Keep what it lies on; the layers live as long as the containers on them."""
        if any(not one.launcher.is_alive for one in self.shelves):
            raise ImageError(
                f"the image {self.reference} was in memory, and has gone with its launcher. "
                "Commit again, or with a name."
            )
        return self.on.hold() if self.on else -1

    def remove(self) -> builtins.list[str]:
        """Do nothing: the memory is free when no container lies on it, and nobody has this
        object.
        """
        return []


def commit(container: Container, name: str | None) -> Image:
    """Freeze the writable layer of a running or paused container.

    Raises :class:`ImageError` for a name that is none.
    """
    full = parse_reference(name).full if name else ""
    if not full and container.taken is not None:
        return _committed(container, container.taken)
    if not full and container.spec.layers is None and _is_quiet(container):
        with contextlib.suppress(SetupError):  # a layer on disk: it is copied
            return _taken(container)
    with _still(container):
        if full or container.spec.layers is not None:
            return _stored(container, full)
        return _committed(container, _copied(container))


def _is_quiet(container: Container) -> bool:
    if container.status != "running":
        return False
    return (
        container.cgroup.pids() == (container.pid,) or not container.processes()
    )  # the cgroups, if any, are read faster


@contextlib.contextmanager
def _still(container: Container) -> Iterator[None]:
    if container.status == "paused":
        yield
        return
    try:
        _pause_unless_quiet(container)
        yield
    finally:  # also where an interrupt came in the middle of the pause
        with Deferred():
            container.unpause()


def _pause_unless_quiet(container: Container) -> None:
    try:
        container.pause()
    except UnsupportedError:  # no cgroups here
        if not _is_quiet(container):
            raise


def _taken(container: Container) -> Image:
    launcher = container.launcher
    container.freezing = container.freezing or secrets.token_hex(
        8
    )  # the same again after an interrupt
    launcher.request({"op": "freeze", "id": container.id, "key": container.freezing})
    with container.opened_layer() as (layer, places):
        points = _points(container, places)
        with Deferred():
            container.taken, container.freezing = (
                launcher.snapshots.add(launcher, container.freezing, os.dup(layer), points),
                "",
            )
    image = _committed(container, container.taken)
    container.prepare(
        container.settings.replace(image=image)
    )  # what is committed is about to be started from
    return image


def _points(container: Container, places: dict[str, tuple[str, tuple[str, ...]]]) -> dict[str, str]:
    """Return where the overlays lie, without those of the host's directories over an image: they
    are not the image's.
    """
    return {
        number: point
        for number, (point, _lower) in places.items()
        if point not in container.spec.directories
    }


def _copied(container: Container) -> Snapshot:
    with container.opened_layer() as (layer, places):
        points = _points(container, places)
        return _shelved(
            container.launcher,
            points,
            {number: f"{process.path_of(layer)}/{number}/upper" for number in points},
        )


def _shelved(launcher: LauncherClient, points: dict[str, str], sources: dict[str, str]) -> Snapshot:
    """Copy directories to a new layer on the shelf."""
    shelved = _new_shelved(launcher, points)
    directory = shelved.directory
    for number, source in sources.items():
        os.mkdir(number, 0o700, dir_fd=directory)
        target = f"{process.path_of(directory)}/{number}/upper"
        as_builder(launcher.builder_fd, partial(_copy_directory, source, target))
    return shelved


def _new_shelved(launcher: LauncherClient, points: dict[str, str]) -> Snapshot:
    key = secrets.token_hex(8)
    try:
        _answer, fds = launcher.request({"op": "shelve", "key": key})
        with Deferred():
            return launcher.snapshots.add(launcher, key, fds.take(), points)
    except BaseException:
        launcher.snapshots.unused.append(key)
        raise


def _copy_directory(source: str, target: str, *, owners: bool = True) -> Copied:
    fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return copy_tree(fd, target, owners=owners)
    finally:
        os.close(fd)


def bring(
    launcher: LauncherClient, above: tuple[tuple[str, str], ...]
) -> tuple[tuple[str, str], ...]:
    """Return the directories that lie above the host's root as a spec may name them: what is stored
    is copied to the shelf, once for a launcher.

    The store lies on the host's root, and overlayfs takes no two layers of which one is within the
    other (ELOOP).
    """
    found = []
    for point, place in above:
        if place.startswith(SHELF):
            found.append((point, place))
            continue
        if place not in launcher.brought:
            launcher.brought[place] = _shelved(launcher, {"0": point}, {"0": place})
        found += launcher.brought[place].above
    return tuple(found)


def _committed(container: Container, shelved: Snapshot) -> Image:
    on = container.rootfs.image
    below = on.shelves if isinstance(on, Committed) else ()
    root = on.on if isinstance(on, Committed) else on
    used = os.fstatvfs(shelved.directory)
    size = (used.f_blocks - used.f_bfree) * used.f_frsize + (on.size if on else 0)
    image_id = f"sha256:{shelved.key.ljust(64, '0')}"
    own = [shelved, *(one for one in reversed(container.frozen) if one is not shelved)]
    return Committed(
        image_id,
        image_id,
        (*(on.layers if on else ()), image_id),
        size,
        shelves=(*own, *below),
        on=root,
    )


def _step() -> dict[str, str]:
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "created_by": "pytest-sandbox commit",
    }


def _stored(container: Container, name: str) -> Image:
    """Copy the layer, and those on the shelf that it lies on, into the store."""
    store = Store()
    with container.opened_layer() as (layer, places):
        points = _points(container, places)
        parts = [
            (layer, points),
            *((one.directory, one.points) for one in _shelves_below(container)),
        ]
        with Adding(store) as adding:
            builder = container.user_namespaces()[1]
            pieces = [
                (point, _store_one(adding, builder, directory, number))
                for directory, found in reversed(parts)
                for number, point in found.items()
            ]
            image_id = _register(adding, container, [piece for piece in pieces if piece[1]], name)
    return Image.get(name or image_id)


def _shelves_below(container: Container) -> list[Snapshot]:
    on = container.rootfs.image
    return [*reversed(container.frozen), *(on.shelves if isinstance(on, Committed) else ())]


def _store_one(adding: Adding, builder: int, directory: int, number: str) -> str:
    """Store one overlay's layer under a key of its own; returns "" for one that holds nothing.

    What a user stores belongs to this user, whoever has it inside, as what it loads does: nobody
    else could remove it.
    """
    source = f"{process.path_of(directory)}/{number}/upper"
    if number != "0" and not as_builder(builder, lambda: os.listdir(source)):
        return ""
    key = f"sha256:{secrets.token_hex(32)}"

    def make(target: str) -> LayerFacts:
        os.rmdir(target)
        return LayerFacts(
            *as_builder(builder, lambda: _stored_copy(source, target, owners=builder < 0))
        )

    adding.layer(key, make)
    return key


def _stored_copy(source: str, target: str, *, owners: bool) -> tuple[int, int]:
    """Copy a directory, and return the copy's size and its count of entries."""
    size, entries = _copy_directory(source, target, owners=owners)
    return size, max(entries, 1)


def _register(
    adding: Adding, container: Container, pieces: list[tuple[str, str]], name: str
) -> str:
    on = container.rootfs.image
    root = on.on if isinstance(on, Committed) else on
    history = [*(on.history if on else ()), _step()]
    below = list(root.layers) if root else []
    keys = [key for _point, key in pieces]
    document = {**(root.document if root else {}), "history": history}
    config = synthesised([*below, *keys], history, document.get("config"))
    if root and root.document:
        document["rootfs"] = {"type": "layers", "diff_ids": [*below, *keys]}
        config = json.dumps(document).encode()
    base = root.base or root.directory if root else "host"
    points = {key: point for point, key in pieces} | (dict(root.points) if root else {})
    return adding.register(
        config, [*below, *keys], [name] if name else [], base=base, points=points
    )
