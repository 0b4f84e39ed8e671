"""Saved layers: what containers wrote, copied before they end, for inspection (--sandbox-keep).

::

    HOME/kept/ID/kept.json   id, label, time, settings (as Settings.raw()), points: the mount point
    of each overlay by its number ("0": the root)
    HOME/kept/ID/N/upper     the upper directory of overlay N
    (Documentation/filesystems/overlayfs.rst)
    HOME/kept/ID.PID/        a layer that process PID is copying while it holds a lock (flock(2)),
    or that it left incomplete when it was killed

HOME is the directory of the image store. A container that starts from a saved layer has the saved
directories below its writable layer, so what is done in it does not change them.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from pytest_sandbox.container.build_spec import serializable
from pytest_sandbox.container.builder import as_builder
from pytest_sandbox.container.layer import opened_layer
from pytest_sandbox.errors import SandboxError
from pytest_sandbox.linux import private_directory
from pytest_sandbox.linux.copying import copy_tree
from pytest_sandbox.linux.directories import OpenDirectory
from pytest_sandbox.linux.removal import remove_tree
from pytest_sandbox.paths import images
from pytest_sandbox.runtime import storage

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.container.handle import Handle

__all__ = [
    "SavedLayer",
    "find",
    "home",
    "keep_without_layer",
    "list_saved",
    "make_home",
    "names",
    "save",
    "save_into",
]

_FACTS = "kept.json"
_REMEDY = (
    "Set PYTEST_SANDBOX_HOME to a directory with enough space that is not on an overlay (docker's "
    "root is one): a volume, or one below /dev/shm."
)


@dataclass(frozen=True, slots=True)
class SavedLayer:
    """A saved layer.

    ``time`` is when it was saved, in seconds since the epoch. ``settings`` are those of its
    container, as :meth:`Settings.of` reads them. ``points`` are the mount points of its overlays,
    by number.
    """

    id: str
    label: str
    time: float
    settings: dict[str, Any] = field(default_factory=dict)
    points: dict[str, str] = field(default_factory=dict)

    @property
    def directory(self) -> str:
        """The directory that holds it."""
        return os.path.join(home(), self.id)

    @property
    def layers(self) -> dict[str, str]:
        """The saved directory of each overlay, by its mount point."""
        return {point: f"{self.directory}/{number}/upper" for number, point in self.points.items()}

    def remove(self) -> None:
        """Remove it from disk. Raises OSError."""
        unfinished = f"{self.directory}.{os.getpid()}"
        try:
            os.rename(self.directory, unfinished)  # after a crash the cleanup finds it
        except FileNotFoundError:
            return
        remove_tree(unfinished)


def home() -> str:
    """Return the directory of saved layers, which need not exist."""
    return os.path.join(images(), "kept")


def make_home() -> str:
    """Return the directory of saved layers, created and closed to other users: layers may hold
    set-user-ID programs and secrets.

    Raises PermissionError if another user owns it, and could forge what is in it.
    """
    return private_directory.make_private(home())


def names() -> list[str]:
    """Return the names in the directory of saved layers; none if another user may write to it: that
    user could name any process as a supervisor, which would get our signals.
    """
    return [name for one in private_directory.private_ones([home()]) for name in os.listdir(one)]


def save(handle: Handle) -> SavedLayer:
    """Copy the writable layer of a running container.

    Raises :class:`SandboxError` if it cannot be copied; nothing is left then.
    """
    return _saved(handle, _write)


def save_into(handle: Handle, unfinished: str) -> SavedLayer:
    """Copy the writable layer of a running container to the directory of
    :func:`storage.make_unfinished`, and finish it.

    Raises :class:`SandboxError` if it cannot be copied; no part of the layer is left then.
    """

    def fill(saved: SavedLayer, layer: int, builder: int) -> None:
        try:
            _fill(unfinished, saved, layer, builder)
        except BaseException:
            for number in saved.points:
                with suppress(OSError):
                    remove_tree(f"{unfinished}/{number}")
            raise

    return _saved(handle, fill)


def keep_without_layer(handle: Handle, unfinished: str) -> None:
    """Finish the directory of :func:`storage.make_unfinished` without a layer. Raises OSError."""
    settings = serializable(handle.settings)
    _finish(unfinished, SavedLayer(handle.id, handle.label, time.time(), settings, {}))


def _saved(handle: Handle, write: Callable[[SavedLayer, int, int], None]) -> SavedLayer:
    try:
        with opened_layer(handle) as (layer, overlays):
            points = {number: overlay.point for number, overlay in overlays.items()}
            settings = serializable(handle.settings)
            saved = SavedLayer(handle.id, handle.label, time.time(), settings, points)
            write(saved, layer, handle.user_namespaces()[1])
    except OSError as error:
        raise SandboxError(
            f"the layer of {handle.id} cannot be saved in {home()}: {error}. {_REMEDY}"
        ) from error
    return saved


def _write(saved: SavedLayer, layer: int, builder: int) -> None:
    directory = make_home()
    with suppress(OSError):
        storage.remove_unfinished(directory)
    unfinished, lock = storage.make_unfinished(saved.directory)
    try:
        _fill(unfinished, saved, layer, builder)
    except BaseException:
        with suppress(OSError):  # the cleanup of the next session removes it
            remove_tree(unfinished)
        raise
    finally:
        os.close(lock)


def _fill(unfinished: str, saved: SavedLayer, layer: int, builder: int) -> None:
    """Copy the layer to the directory ``unfinished``, and rename that."""
    for number in saved.points:
        os.mkdir(f"{unfinished}/{number}")
        copy = partial(
            _copy, layer, f"{number}/upper", f"{unfinished}/{number}/upper", owners=builder < 0
        )
        as_builder(builder, copy)
    _finish(unfinished, saved)


def _finish(unfinished: str, saved: SavedLayer) -> None:
    """Describe the layer, and rename its directory."""
    facts = {
        "id": saved.id,
        "label": saved.label,
        "time": saved.time,
        "settings": saved.settings,
        "points": saved.points,
    }
    with open(f"{unfinished}/{_FACTS}", "x", encoding="utf-8") as file:
        json.dump(facts, file, default=str)
    os.rename(unfinished, saved.directory)


def _copy(layer: int, name: str, target: str, *, owners: bool) -> None:
    with OpenDirectory(name, layer) as upper:
        copy_tree(upper, target, owners=owners)


def list_saved() -> list[SavedLayer]:
    """Return the saved layers, oldest first, without those that are incomplete or damaged."""
    found = [one for one in map(_read, names()) if one is not None]
    return sorted(found, key=lambda one: one.time)


def find(id: str) -> SavedLayer:  # noqa: A002 - the name of the field
    """Return the saved layer of this id. Raises :class:`SandboxError` if there is none."""
    found = _read(id) if id in names() else None
    if found is None:
        raise SandboxError(
            f"there is no saved layer {id!r} in {home()}. Run pytest with --sandbox-keep=failed "
            "to save some."
        )
    return found


def _read(name: str) -> SavedLayer | None:
    if "." in name or "/" in name:
        return None
    try:
        with open(os.path.join(home(), name, _FACTS), encoding="utf-8") as file:
            return SavedLayer(**json.load(file))
    except (OSError, ValueError, TypeError):
        return None
