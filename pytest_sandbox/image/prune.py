"""Removal from the store: images by name, unused images, and what killed processes left behind.

Every function holds the lock of the index while it decides, so that no image that is about to be
registered loses a layer.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import ImageError
from pytest_sandbox.image.index import hex_of
from pytest_sandbox.image.store import UnknownImage
from pytest_sandbox.linux.file_lock import try_lock
from pytest_sandbox.linux.removal import remove_tree

if TYPE_CHECKING:
    from pytest_sandbox.image.index import Index
    from pytest_sandbox.image.store import Store

__all__ = ["collect", "prune", "remove", "remove_abandoned"]

# Names that the store gives; other files in its directories are left alone.
_DIGEST: Final = re.compile(r"[0-9a-f]{64}\Z")
_TEMPORARY: Final = re.compile(r"[0-9a-f]{16}\Z")
_BUILD_LOCK: Final = re.compile(r"[0-9a-f]{64}\.making\Z")


def remove(store: Store, image_id: str, *, name: str = "") -> list[str]:
    """Remove a name of an image, or the image itself with its last name (or without ``name``).

    Returns the names and ids that were removed. Raises UnknownImage, and ImageError when a
    container uses the image.
    """
    with store.locked() as index:
        if image_id not in index.images:
            raise UnknownImage(image_id)
        names = index.names_of(image_id)
        if name and set(names) - {name}:
            index.drop(name)
            return [name]
        if not _remove_image(store, index, image_id):
            raise ImageError(
                f"the image {names[0] if names else image_id} is in use by a container. Close "
                "the container first."
            )
    collect(store)
    return [*names, image_id]


def _remove_image(store: Store, index: Index, image_id: str) -> bool:
    """Remove an image from the locked index; return False if a container uses the image."""
    path = store.path("images", hex_of(image_id))
    fd = try_lock(path)
    if fd is None and os.path.lexists(path):
        return False
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    if fd is not None:
        os.close(fd)
    del index.images[image_id]
    for one in index.names_of(image_id):
        index.drop(one)
    return True


def prune(
    store: Store, *, every: bool = False, older_than: float = 0.0, keep_bytes: int | None = None
) -> tuple[list[str], int]:
    """Remove unused images; return their ids and the bytes of layers that were removed.

    Removed are images without a name, or all with ``every``, that were not used for ``older_than``
    seconds. With ``keep_bytes``, the least recently used images are removed instead until their
    layers take no more than that. Layers of no image and files of killed processes are always
    removed.
    """
    store.prepare()
    before = disk_usage(store)
    with store.locked() as index:
        now = time.time()
        removed = []
        for image_id in sorted(index.images, key=store.last_used):
            chosen = (
                (every or not index.names_of(image_id))
                if keep_bytes is None
                else _used_bytes(store, index) > keep_bytes
            )
            is_old = now - store.last_used(image_id) >= older_than
            if chosen and is_old and _remove_image(store, index, image_id):
                removed.append(image_id)
    collect(store)
    return removed, before - disk_usage(store)


def disk_usage(store: Store) -> int:
    """Return the bytes of all layers in the store."""
    return sum(_size(store, key) for key in _names(store, "layers"))


def _used_bytes(store: Store, index: Index) -> int:
    return sum(_size(store, key) for key in index.layers_in_use())


def _size(store: Store, key: str) -> int:
    with contextlib.suppress(ImageError):
        return store.layer_facts(key).size
    return 0


def _names(store: Store, directory: str, pattern: re.Pattern[str] = _DIGEST) -> set[str]:
    """Return the names in one of the store's directories that match ``pattern``."""
    try:
        return {one for one in os.listdir(store.path(directory)) if pattern.match(one)}
    except FileNotFoundError:
        return set()


def collect(store: Store) -> None:
    """Remove layers and documents of no image, and what killed processes left behind."""
    with store.locked() as index:
        for name in _names(store, "layers") - set(map(hex_of, index.layers_in_use())):
            _discard_layer(store, name)
        for name in _names(store, "documents") - set(map(hex_of, index.documents_in_use())):
            with contextlib.suppress(OSError):  # a directory of this name is not the store's
                os.unlink(store.path("documents", name))
        for name in _names(store, "images") - set(map(hex_of, index.images)):
            _remove_lock(store.path("images", name))
        for name in _names(store, "locks") - _names(store, "layers"):
            _remove_lock(store.path("locks", name))
        for name in _names(store, "locks", _BUILD_LOCK):
            _remove_lock(store.path("locks", name))
    remove_abandoned(store)


def _discard_layer(store: Store, name: str) -> None:
    """Move a layer to ``tmp``, from where it is removed, unless a process has locked it."""
    path = store.path("locks", name)
    fd = try_lock(path, create=True)
    if fd is not None:
        os.rename(store.path("layers", name), store.path("tmp", secrets.token_hex(8)))
        os.unlink(path)
        os.close(fd)


def _remove_lock(path: str) -> None:
    """Remove a lock file, unless a process has locked it."""
    with contextlib.suppress(IsADirectoryError):
        if (fd := try_lock(path)) is not None:
            try:
                os.unlink(path)
            finally:
                os.close(fd)


def remove_abandoned(store: Store) -> None:
    """Remove what killed processes left in ``tmp``; what cannot be removed stays."""
    abandoned = []
    with store.locked():
        for name in _names(store, "tmp", _TEMPORARY):
            path = store.path("tmp", name)
            if not os.path.isdir(path) or os.path.islink(path):
                with contextlib.suppress(FileNotFoundError):  # its owner has removed it meanwhile
                    os.unlink(path)
            elif (fd := try_lock(path)) is not None:
                abandoned.append((path, fd))
    for path, fd in abandoned:
        with contextlib.suppress(OSError):
            remove_tree(path)
        os.close(fd)
