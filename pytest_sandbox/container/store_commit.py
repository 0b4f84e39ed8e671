"""Copy what was written in a container into the image store, as an image."""

from __future__ import annotations

import json
import os
import secrets
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pytest_sandbox.container.builder import as_builder
from pytest_sandbox.container.snapshot_copy import copy_directory
from pytest_sandbox.image.changes import changed
from pytest_sandbox.image.image import Image, find
from pytest_sandbox.image.index import LayerInfo
from pytest_sandbox.image.manifest import make_config
from pytest_sandbox.image.reference import parse_reference
from pytest_sandbox.image.store import Store
from pytest_sandbox.image.transaction import Transaction
from pytest_sandbox.linux import process
from pytest_sandbox.linux.directories import OpenDirectory

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_sandbox.container.saved_layers import SavedLayer

__all__ = ["Base", "Details", "commit_saved", "step", "store"]


@dataclass(frozen=True, slots=True)
class Details:
    """What a commit says of its image: the full name (empty: none), a message, an author, and
    changes of the configuration as in a Dockerfile.
    """

    name: str = ""
    message: str = ""
    author: str = ""
    changes: tuple[str, ...] = ()

    @classmethod
    def read(
        cls, name: str | None, *, message: str = "", author: str = "", changes: Iterable[str] = ()
    ) -> Self:
        """Return checked details. Raises :class:`ImageError` for an invalid name, and
        :class:`SettingsError` for an invalid change.
        """
        given = tuple(changes)
        changed({}, given)
        return cls(parse_reference(name).full if name else "", message, author, given)


@dataclass(frozen=True, slots=True)
class Base:
    """What an image is committed on: the stored image below (None: the host's root), and the
    history so far.
    """

    image: Image | None
    history: tuple[dict[str, Any], ...] = ()


def step(details: Details | None = None) -> dict[str, str]:
    """Return the step of a commit for an image's history."""
    said = {"author": details.author, "comment": details.message} if details else {}
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "created_by": "pytest-sandbox commit",
        **{name: text for name, text in said.items() if text},
    }


def store(
    parts: Sequence[tuple[int, Mapping[str, str]]], base: Base, details: Details, *, builder: int
) -> Image:
    """Copy layers, topmost first, into the store, and return their image.

    Each layer is a directory, and the mount points of the overlays in it by their numbers.
    ``builder`` is the user namespace of those who own the files, or -1.
    """
    with Transaction(Store()) as transaction:
        layers = [
            (point, _store_layer(transaction, builder, directory, number))
            for directory, points in reversed(parts)
            for number, point in points.items()
        ]
        stored = [one for one in layers if one[1]]
        image_id = _register(transaction, base, stored, details)
    return Image.get(details.name or image_id)


def commit_saved(saved: SavedLayer, image: str, details: Details) -> Image:
    """Commit a saved layer; ``image`` is what its container was based on."""
    parent = find(image)
    with ExitStack() as opened:
        directory = opened.enter_context(OpenDirectory(saved.directory))
        if parent is not None and (lock := parent.hold()) >= 0:
            opened.callback(os.close, lock)
        base = Base(parent, parent.history if parent else ())
        return store([(directory, saved.points)], base, details, builder=-1)


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
    transaction: Transaction, base: Base, layers: list[tuple[str, str]], details: Details
) -> str:
    """Add an image of stored layers (mount point and key of each) to the store; return its id."""
    parent = base.image
    history = [*base.history, step(details)]
    keys = [*(parent.layers if parent else ()), *(key for _point, key in layers)]
    document = dict(parent.document) if parent else {}
    config = changed(document.get("config") or {}, details.changes)
    if document:
        rootfs = {"type": "layers", "diff_ids": keys}
        document |= {"rootfs": rootfs, "history": history, "config": config}
    else:
        document = json.loads(make_config(keys, history, config))
    document["created"] = history[-1]["created"]
    if details.author:
        document["author"] = details.author
    below = parent.base or parent.directory if parent else "host"
    points = {key: point for point, key in layers} | (dict(parent.points) if parent else {})
    return transaction.register(
        json.dumps(document).encode(),
        keys,
        [details.name] if details.name else [],
        base=below,
        points=points,
    )
