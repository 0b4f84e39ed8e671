"""The store: layers by their content, images by their configuration, names for them; shared by all processes of a user.

::

    index.json        what is stored: names and images          written by rename, under the lock
    lock              filelock's, held for moments
    documents/HEX     configurations and manifests, as they came
    layers/HEX/       fs: the folder that overlayfs takes; layer.json: what is known of it
    images/HEX        locked (shared) while a container lives on the image; its time is the last use
    locks/HEX         locked while somebody makes the layer HEX, or counts on it before the index names it
    tmp/              what is being made; whatever nobody holds is a dead process's, and goes

Nothing has a final name before it is complete, so a process can be killed at any moment. A layer is referenced by the images in the index:
nothing is counted, so nothing can be miscounted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, TextIO

from pytest_sandbox.errors import ImageError
from pytest_sandbox.folders import images
from pytest_sandbox.image.folders import remove_tree
from pytest_sandbox.image.locks import lock_file, lock_folder, try_exclusive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_sandbox.image.reference import Reference

__all__ = ["Index", "LayerFacts", "Record", "Store"]

_FOLDERS: Final = ("documents", "layers", "images", "locks", "tmp")
_PRIVATE: Final = 0o700


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What layer.json says: sizes, and what a mount has to know. Paths that are no UTF-8 are surrogate-escaped."""

    size: int = 0
    entries: int = 0
    opaque_root: bool = False
    implied: tuple[str, ...] = ()
    not_kept: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """One image in the index: its layers' keys, bottom first, and the keys that a container mounts, topmost first.

    What the layers of a commit lie on, if not on others: ``base`` is "host", or the folder of a root file system; ``points`` say which of
    the host's file systems a layer belongs to, where that is not its root's.
    """

    layers: tuple[str, ...]
    mounts: tuple[str, ...]
    size: int
    stored: float
    manifest: str = ""
    base: str = ""
    points: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Index:
    """What is stored: ``names`` (full references) lead to image ids, ``images`` from ids to records.

    ``digests`` say which manifest or index of its registry a pulled name meant.
    """

    names: dict[str, str] = field(default_factory=dict)
    images: dict[str, Record] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    def find(self, reference: Reference) -> str | None:
        """Return the id of a stored image by its name, or by its name and the digest that it was pulled by."""
        found = self.names.get(reference.full)
        if found is None and reference.digest:
            start = f"{reference.registry}/{reference.repository}:"
            known = (name for name, digest in self.digests.items() if digest == reference.digest and name.startswith(start))
            found = next((self.names[name] for name in known if name in self.names), None)
        return found

    def call(self, name: str, image_id: str, digest: str = "") -> None:
        """Give an image a name, which it takes away from another."""
        self.names[name] = image_id
        self.digests.pop(name, None)
        if digest:
            self.digests[name] = digest

    def drop(self, name: str) -> None:
        """Take a name away."""
        self.names.pop(name, None)
        self.digests.pop(name, None)

    def names_of(self, image_id: str) -> list[str]:
        return sorted(name for name, found in self.names.items() if found == image_id)

    def layers_in_use(self) -> set[str]:
        return {key for record in self.images.values() for key in (*record.layers, *record.mounts)}

    def documents_in_use(self) -> set[str]:
        return {*self.images, *(record.manifest for record in self.images.values())}


def hex_of(digest: str) -> str:
    """Return a digest's digits, which name files."""
    return digest.removeprefix("sha256:")


class Store:
    """The store below one folder; an object holds no state but the path, and can be made at any time."""

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder or images()

    def path(self, *parts: str) -> str:
        return os.path.join(self.folder, *parts)

    def layer_path(self, key: str) -> str:
        """Return the folder that overlayfs takes."""
        return self.path("layers", hex_of(key), "fs")

    def has_layer(self, key: str) -> bool:
        return os.path.isdir(self.path("layers", hex_of(key)))

    def layer_facts(self, key: str) -> LayerFacts:
        with open(self.path("layers", hex_of(key), "layer.json"), encoding="utf-8", errors="surrogateescape") as file:
            data = json.load(file)
        return LayerFacts(**{**data, "implied": tuple(data["implied"])})

    def has_document(self, digest: str) -> bool:
        return os.path.isfile(self.path("documents", hex_of(digest)))

    def document(self, digest: str) -> bytes:
        """Return a stored document, verified."""
        try:
            with open(self.path("documents", hex_of(digest)), "rb") as file:
                data = file.read()
        except FileNotFoundError:
            raise ImageError(f"the store has lost the document {digest}. Pull or load the image again.") from None
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            raise ImageError(f"the stored document {digest} is damaged. Remove the image, and pull or load it again.")
        return data

    def index(self) -> Index:
        """Read what is stored; needs no lock, because the file is replaced as a whole. Do not change what is returned."""
        try:
            with open(self.path("index.json"), encoding="utf-8") as file:
                status = os.fstat(file.fileno())
                return _parsed(file, (status.st_dev, status.st_ino, status.st_mtime_ns))
        except FileNotFoundError:
            return Index()
        except (ValueError, KeyError, TypeError) as error:
            raise ImageError(f"{self.path('index.json')} is damaged ({error}). Remove {self.folder}, and pull or load again.") from error

    # -- writing

    def prepare(self) -> None:
        """Make the store's folders, closed to other users: layers hold setuid programs and devices."""
        os.makedirs(self.folder, _PRIVATE, exist_ok=True)
        status = os.stat(self.folder)
        if status.st_uid != os.geteuid():
            raise ImageError(f"{self.folder} belongs to somebody else (uid {status.st_uid}). Set PYTEST_SANDBOX_HOME to a folder of yours.")
        if status.st_mode & 0o077:
            os.chmod(self.folder, _PRIVATE)
        for name in _FOLDERS:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.path(name), _PRIVATE)

    @contextlib.contextmanager
    def locked(self) -> Iterator[Index]:
        """Hold the index; what is changed in it is written at the end, unless an exception comes out."""
        from filelock import FileLock

        self.prepare()
        with FileLock(self.path("lock"), poll_interval=0.005):
            read = self.index()
            index = Index(dict(read.names), dict(read.images), dict(read.digests))
            before = _text(index)
            yield index
            after = _text(index)
            if after != before:
                self._replace("index.json", after.encode())

    def _replace(self, name: str, data: bytes) -> None:
        new = self.path("tmp", secrets.token_hex(8))
        with open(new, "xb") as file:
            file.write(data)
        os.replace(new, self.path(name))

    def put_document(self, data: bytes) -> str:
        """Store a document; call with the index locked. Returns its digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self._replace(os.path.join("documents", hex_of(digest)), data)
        return digest

    @contextlib.contextmanager
    def workplace(self) -> Iterator[str]:
        """Give an empty folder in the store's file system; what is left of it at the end goes."""
        with self.locked():  # a sweep between the folder and its lock would take it for a dead process's
            path = self.path("tmp", secrets.token_hex(8))
            os.mkdir(path, _PRIVATE)
            fd = lock_folder(path)
        try:
            yield path
        finally:
            remove_tree(path)
            os.close(fd)

    def publish(self, work: str, key: str, facts: LayerFacts) -> None:
        """Give the complete layer in ``work`` (with ``fs`` in it) its name; the caller holds its pin."""
        made = os.path.join(work, "layer")
        os.mkdir(made, _PRIVATE)
        os.rename(os.path.join(work, "fs"), os.path.join(made, "fs"))
        with open(os.path.join(made, "layer.json"), "x", encoding="utf-8", errors="surrogateescape") as file:
            json.dump(asdict(facts), file, ensure_ascii=False)
        with contextlib.suppress(OSError):  # it is there already
            os.rename(made, self.path("layers", hex_of(key)))
        if not self.has_layer(key):
            raise ImageError(f"the layer {key} could not be put into {self.path('layers')}")

    def pin(self, key: str, *, shared: bool) -> int:
        """Keep a layer from being removed (shared), or make it alone; the descriptor holds until it is closed."""
        return lock_file(self.path("locks", hex_of(key)), shared=shared)

    # -- use

    def hold(self, image_id: str) -> int:
        """Keep an image from being removed while a container lives on it; returns a descriptor to close. Marks the image as used now."""
        try:
            fd = lock_file(self.path("images", hex_of(image_id)), shared=True, make=False)
        except FileNotFoundError:
            raise ImageError(f"the image {image_id} is no longer stored. Pull or load it again.") from None
        os.utime(fd)
        return fd

    def last_used(self, image_id: str) -> float:
        """Return when a container was last started on the image, or when it was stored."""
        with contextlib.suppress(FileNotFoundError):
            return os.stat(self.path("images", hex_of(image_id))).st_mtime
        return 0.0

    # -- removal

    def remove(self, image_id: str, *, name: str = "") -> list[str]:
        """Take a name away, or with the last one (or without ``name``) the image; returns what was removed.

        Raises ImageError where a container lives on it.
        """
        with self.locked() as index:
            if image_id not in index.images:
                raise ImageError(f"the image {image_id} is not stored")
            names = index.names_of(image_id)
            if name and set(names) - {name}:
                index.drop(name)
                return [name]
            if not self._forget(index, image_id):
                raise ImageError(f"the image {names[0] if names else image_id} is in use by a container. Close it first.")
        self.collect()
        return [*names, image_id]

    def _forget(self, index: Index, image_id: str) -> bool:
        """Take an image out of the index, unless a container lives on it; call with the index locked."""
        path = self.path("images", hex_of(image_id))
        fd = try_exclusive(path)
        if fd is None and os.path.exists(path):
            return False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        if fd is not None:
            os.close(fd)
        del index.images[image_id]
        for one in index.names_of(image_id):
            index.drop(one)
        return True

    def prune(self, *, every: bool = False, older_than: float = 0.0, keep_bytes: int | None = None) -> tuple[list[str], int]:
        """Remove images that nobody uses: those without a name, or ``every`` one; not used for ``older_than`` seconds.

        With ``keep_bytes`` go those used longest ago, until the layers take no more than that. Layers that no image has and what dead
        processes left go in any case. Returns the ids, and how many bytes of layers went.
        """
        before = self.disk_usage()
        with self.locked() as index:
            now = time.time()
            removed = []
            for image_id in sorted(index.images, key=self.last_used):
                chosen = (every or not index.names_of(image_id)) if keep_bytes is None else self._usage(index) > keep_bytes
                if chosen and now - self.last_used(image_id) >= older_than and self._forget(index, image_id):
                    removed.append(image_id)
        self.collect()
        return removed, before - self.disk_usage()

    def disk_usage(self) -> int:
        """Return the bytes of all layers in the store."""
        with contextlib.suppress(FileNotFoundError):
            return sum(self._size(name) for name in os.listdir(self.path("layers")))
        return 0

    def _usage(self, index: Index) -> int:
        return sum(self._size(key) for key in index.layers_in_use())

    def _size(self, key: str) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self.layer_facts(key).size
        return 0

    def collect(self) -> None:
        """Remove layers and documents that no image has, and what dead processes left behind."""
        with self.locked() as index:
            used = {hex_of(key) for key in index.layers_in_use()}
            for name in set(os.listdir(self.path("layers"))) - used:
                self._take_away(name)
            documents = {hex_of(digest) for digest in index.documents_in_use()}
            for name in set(os.listdir(self.path("documents"))) - documents:
                os.unlink(self.path("documents", name))
            for name in set(os.listdir(self.path("locks"))) - set(os.listdir(self.path("layers"))):
                self._unlock(name)
        self.sweep()

    def _take_away(self, name: str) -> None:
        """Move a layer to what the sweep removes, unless somebody counts on it."""
        lock = _lock_unless_held(self.path("locks", name))
        if lock is not None:
            os.rename(self.path("layers", name), self.path("tmp", secrets.token_hex(8)))
            os.unlink(self.path("locks", name))
            os.close(lock)

    def _unlock(self, name: str) -> None:
        fd = try_exclusive(self.path("locks", name))
        if fd is not None:
            os.unlink(self.path("locks", name))
            os.close(fd)

    def sweep(self) -> None:
        """Remove what processes that were killed had begun."""
        dead = []
        with self.locked():
            for name in os.listdir(self.path("tmp")):
                path = self.path("tmp", name)
                if not os.path.isdir(path):
                    os.unlink(path)
                elif (fd := try_exclusive(path)) is not None:
                    dead.append((path, fd))
        for path, fd in dead:
            remove_tree(path)
            os.close(fd)


def _lock_unless_held(path: str) -> int | None:
    """Hold a lock file alone, made where it is not there; None where somebody holds it."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    return try_exclusive(path)


_last_parsed: tuple[object, Index] = (None, Index())


def _parsed(file: TextIO, version: tuple[int, ...]) -> Index:
    """Read an index, unless it is the one that was read last: containers ask for it at every start."""
    global _last_parsed  # noqa: PLW0603 - a cache of one
    if _last_parsed[0] != version:
        data = json.load(file)
        images = {image_id: _record(record) for image_id, record in data["images"].items()}
        index = Index(data["names"], images, data["digests"])
        _last_parsed = (version, index)
    return _last_parsed[1]


def _record(data: dict[str, Any]) -> Record:
    return Record(**{**data, "layers": tuple(data["layers"]), "mounts": tuple(data["mounts"])})


def _text(index: Index) -> str:
    images = {key: asdict(record) for key, record in index.images.items()}
    return json.dumps({"names": index.names, "digests": index.digests, "images": images}, sort_keys=True)
