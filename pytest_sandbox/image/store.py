"""The store: layers by their content, images by their configuration, names for them; shared by all
processes of a user.

::

    index.json        what is stored: names and images          written by rename, under the lock
    lock              filelock's, held for moments
    documents/HEX     configurations and manifests, as they came
    layers/HEX/       fs: the directory that overlayfs takes; layer.json: what is known of it
    images/HEX        locked (shared) while a container lives on the image; its time is the last use
    locks/HEX         locked (shared) while somebody counts on the layer HEX before the index names
    it
    locks/HEX.making  locked while somebody makes the layer HEX
    tmp/              what is being made; whatever nobody holds is a dead process's, and goes

Nothing has a final name before it is complete, so a process can be killed at any moment. Files of
other names are not the store's, and are left alone. A layer is referenced by the images in the
index: nothing is counted, so nothing can be miscounted.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import stat
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import ImageError
from pytest_sandbox.image.flatten import remove_tree
from pytest_sandbox.image.index import (
    FORMAT,
    UNREADABLE,
    Index,
    LayerFacts,
    hex_of,
    read_facts,
    read_index,
    text_of,
)
from pytest_sandbox.image.locks import lock_directory, lock_file, try_exclusive
from pytest_sandbox.paths import images

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Store"]

_DIRECTORIES: Final = ("documents", "layers", "images", "locks", "tmp")
_PRIVATE: Final = 0o700
_HEX: Final = re.compile(r"[0-9a-f]{64}\Z")
_OWN_TEMPORARY: Final = re.compile(r"[0-9a-f]{16}\Z")
_MAKING: Final = ".making"
_MAKING_LOCK: Final = re.compile(r"[0-9a-f]{64}\.making\Z")
_LOCK_SECONDS: Final = 60.0


class Store:
    """The store below one directory; an object holds no state but the path, and can be made at any
    time.
    """

    def __init__(self, directory: str | None = None) -> None:
        self.directory = directory or images()

    def path(self, *parts: str) -> str:
        return os.path.join(self.directory, *parts)

    def layer_path(self, key: str) -> str:
        """Return the directory that overlayfs takes."""
        return self.path("layers", hex_of(key), "fs")

    def making_path(self, key: str) -> str:
        """Return the file that is locked by who makes a layer."""
        return self.path("locks", hex_of(key) + _MAKING)

    def whole_layer(self, key: str) -> LayerFacts | None:
        """Return what is known of a stored layer; None where it is missing or damaged.

        What its files hold is not looked at. Raises ImageError for one of a newer format.
        """
        if not os.path.isdir(self.layer_path(key)):
            return None
        try:
            return self._facts(key)
        except (OSError, *UNREADABLE):
            return None

    def layer_facts(self, key: str) -> LayerFacts:
        """Return what is known of a stored layer. Raises ImageError where that is damaged."""
        try:
            return self._facts(key)
        except (OSError, *UNREADABLE):
            raise ImageError(
                f"the stored layer {key} is damaged or missing. Pull or load the image again."
            ) from None

    def _facts(self, key: str) -> LayerFacts:
        path = self.path("layers", hex_of(key), "layer.json")
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return read_facts(file)

    def document(self, digest: str) -> bytes:
        """Return a stored document, verified. Raises ImageError where it is damaged or missing."""
        data = self.whole_document(digest)
        if data is None:
            raise ImageError(
                f"the stored document {digest} is damaged or missing. Pull or load the image again."
            )
        return data

    def whole_document(self, digest: str) -> bytes | None:
        """Return a stored document, verified; None where it is missing or damaged."""
        try:
            with open(self.path("documents", hex_of(digest)), "rb") as file:
                data = file.read()
        except OSError:
            return None
        return data if f"sha256:{hashlib.sha256(data).hexdigest()}" == digest else None

    def is_whole(self, image_id: str) -> bool:
        """Whether all of an image is there, in today's format; what files hold is not looked at."""
        record = self.index().images.get(image_id)
        if record is None or record.format < FORMAT:
            return False
        documents = filter(None, (image_id, record.manifest))
        return (
            all(self.whole_layer(key) for key in {*record.layers, *record.mounts})
            and all(self.whole_document(one) is not None for one in documents)
            and os.path.exists(self.path("images", hex_of(image_id)))
        )

    def index(self) -> Index:
        """Read what is stored; needs no lock, because the file is replaced as a whole. Do not
        change what is returned. Raises ImageError for a store of somebody else, a newer or a
        damaged one.
        """
        path = self.path("index.json")
        try:
            self._check_owner(os.stat(self.directory))
            with open(path, encoding="utf-8") as file:
                status = os.fstat(file.fileno())
                version = (status.st_dev, status.st_ino, status.st_mtime_ns)
                return read_index(file, version)
        except FileNotFoundError:
            return Index()
        except OSError as error:
            raise ImageError(f"{path} cannot be read: {error.strerror}") from error
        except UNREADABLE as error:
            raise ImageError(
                f"{path} is damaged ({str(error)[:200]}). Move this file away, and pull or load "
                "the images again: what is stored of them is found."
            ) from error

    def _check_owner(self, status: os.stat_result) -> None:
        """Raise ImageError for a store that others could have written to."""
        if not stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{self.directory} is not a directory")
        if status.st_uid != os.geteuid():
            raise ImageError(
                f"{self.directory} belongs to another user (uid {status.st_uid}). Set "
                "PYTEST_SANDBOX_HOME to a directory of yours."
            )

    # -- writing

    def prepare(self) -> None:
        """Make the store's directories, closed to other users: layers hold setuid programs and
        devices.
        """
        try:
            os.makedirs(self.directory, _PRIVATE, exist_ok=True)
        except FileExistsError:
            raise ImageError(f"{self.directory} is not a directory") from None
        status = os.stat(self.directory)
        self._check_owner(status)
        if status.st_mode & 0o077:
            os.chmod(self.directory, _PRIVATE)
        for name in _DIRECTORIES:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.path(name), _PRIVATE)

    @contextlib.contextmanager
    def locked(self) -> Iterator[Index]:
        """Hold the index; what is changed in it is written at the end, unless an exception comes
        out. Raises ImageError where another process has held it for a minute.
        """
        from filelock import FileLock, Timeout

        self.prepare()
        lock = FileLock(self.path("lock"), timeout=_LOCK_SECONDS, poll_interval=0.005)
        try:
            lock.acquire()
        except Timeout:
            raise ImageError(
                f"another process has held {self.path('lock')} for {_LOCK_SECONDS:.0f} s. "
                f"`fuser {self.path('lock')}` names it; try again when it has ended."
            ) from None
        try:
            read = self.index()
            index = Index(dict(read.names), dict(read.images), dict(read.digests))
            before = text_of(index)
            yield index
            after = text_of(index)
            if after != before:
                self._replace("index.json", after.encode())
        finally:
            lock.release()

    def _replace(self, name: str, data: bytes) -> None:
        """Write a file as a whole, so that a power loss leaves the old one or the new one."""
        new = self.path("tmp", secrets.token_hex(8))
        try:
            _write_through(new, data)
            os.replace(new, self.path(name))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise

    def put_document(self, data: bytes) -> str:
        """Store a document; call with the index locked. Returns its digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if self.whole_document(digest) is None:
            self._replace(os.path.join("documents", hex_of(digest)), data)
        return digest

    def put_image_file(self, image_id: str) -> None:
        """Make the file that containers lock while they live on the image; call with the index
        locked.
        """
        path = self.path("images", hex_of(image_id))
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    @contextlib.contextmanager
    def workplace(self) -> Iterator[str]:
        """Give an empty directory in the store's file system; what is left of it at the end
        goes.
        """
        with self.locked():  # a sweep between making and locking it would remove it
            path = self.path("tmp", secrets.token_hex(8))
            os.mkdir(path, _PRIVATE)
            fd = lock_directory(path)
        try:
            yield path
        finally:
            remove_tree(path)
            os.close(fd)

    def publish(self, work: str, key: str, facts: LayerFacts) -> None:
        """Give the complete layer in ``work`` (with ``fs`` in it) its name, in the place of a
        damaged one; the caller holds its pin.
        """
        made = os.path.join(work, "layer")
        os.mkdir(made, _PRIVATE)
        os.rename(os.path.join(work, "fs"), os.path.join(made, "fs"))
        text = json.dumps(asdict(facts), ensure_ascii=False)
        with open(os.path.join(made, "layer.json"), "xb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
        target = self.path("layers", hex_of(key))
        try:
            os.rename(made, target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            self._exchange(key, made, target)

    def sync_layer(self, key: str) -> None:
        """Wait until the disk has what is known of a layer: to be called before the index names
        it. For many layers at the end it takes one journal commit, and not one for each.
        """
        with open(self.path("layers", hex_of(key), "layer.json"), "rb") as file:
            os.fsync(file.fileno())

    def _exchange(self, key: str, made: str, target: str) -> None:
        """Put a layer in the place of a damaged one, unless a container lives on that."""
        with self.locked() as index, contextlib.ExitStack() as held:
            for image_id, record in index.images.items():
                path = self.path("images", hex_of(image_id))
                if key not in (*record.layers, *record.mounts):
                    continue
                if (fd := try_exclusive(path)) is not None:
                    held.callback(os.close, fd)
                elif os.path.exists(path):
                    raise ImageError(
                        f"the stored layer {key} is damaged, and a container lives on it. "
                        "Close the container, and pull or load the image again."
                    )
            os.rename(target, self.path("tmp", secrets.token_hex(8)))  # the next sweep removes it
            os.rename(made, target)

    def pin(self, key: str) -> int:
        """Keep a layer from being removed; the descriptor holds until it is closed."""
        return lock_file(self.path("locks", hex_of(key)))

    # -- use

    def hold(self, image_id: str) -> int:
        """Keep an image from being removed while a container lives on it; returns a descriptor to
        close. Marks the image as used now.
        """
        try:
            fd = lock_file(self.path("images", hex_of(image_id)), make=False)
        except FileNotFoundError:
            raise ImageError(
                f"the image {image_id} is no longer stored. Pull or load it again."
            ) from None
        with contextlib.suppress(OSError):  # a store that is read only
            os.utime(fd)
        return fd

    def last_used(self, image_id: str) -> float:
        """Return when a container was last started on the image, or when it was stored."""
        with contextlib.suppress(FileNotFoundError):
            return os.stat(self.path("images", hex_of(image_id))).st_mtime
        return 0.0

    # -- removal

    def remove(self, image_id: str, *, name: str = "") -> list[str]:
        """Take a name away, or with the last one (or without ``name``) the image; returns what was
        removed.

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
                raise ImageError(
                    f"the image {names[0] if names else image_id} is in use by a container. Close "
                    "it first."
                )
        self.collect()
        return [*names, image_id]

    def _forget(self, index: Index, image_id: str) -> bool:
        """Take an image out of the index, unless a container lives on it; call with the index
        locked.
        """
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

    def prune(
        self, *, every: bool = False, older_than: float = 0.0, keep_bytes: int | None = None
    ) -> tuple[list[str], int]:
        """Remove images that nobody uses: those without a name, or ``every`` one; not used for
        ``older_than`` seconds.

        With ``keep_bytes`` go those used longest ago, until the layers take no more than that.
        Layers that no image has and what dead processes left go in any case. Returns the ids, and
        how many bytes of layers went.
        """
        self.prepare()
        before = self.disk_usage()
        with self.locked() as index:
            now = time.time()
            removed = []
            for image_id in sorted(index.images, key=self.last_used):
                chosen = (
                    (every or not index.names_of(image_id))
                    if keep_bytes is None
                    else self._usage(index) > keep_bytes
                )
                if (
                    chosen
                    and now - self.last_used(image_id) >= older_than
                    and self._forget(index, image_id)
                ):
                    removed.append(image_id)
        self.collect()
        return removed, before - self.disk_usage()

    def disk_usage(self) -> int:
        """Return the bytes of all layers in the store."""
        return sum(map(self._size, self._names("layers")))

    def _usage(self, index: Index) -> int:
        return sum(self._size(key) for key in index.layers_in_use())

    def _size(self, key: str) -> int:
        with contextlib.suppress(ImageError):
            return self.layer_facts(key).size
        return 0

    def _names(self, directory: str, pattern: re.Pattern[str] = _HEX) -> set[str]:
        """Return the names in one of the store's directories that are the store's own."""
        try:
            return {one for one in os.listdir(self.path(directory)) if pattern.match(one)}
        except FileNotFoundError:
            return set()

    def collect(self) -> None:
        """Remove layers and documents that no image has, and what dead processes left behind."""
        with self.locked() as index:
            for name in self._names("layers") - set(map(hex_of, index.layers_in_use())):
                self._take_away(name)
            for name in self._names("documents") - set(map(hex_of, index.documents_in_use())):
                with contextlib.suppress(OSError):  # a directory of this name is not the store's
                    os.unlink(self.path("documents", name))
            for name in self._names("images") - set(map(hex_of, index.images)):
                self._unlock("images", name)
            for name in self._names("locks") - self._names("layers"):
                self._unlock("locks", name)
            for name in self._names("locks", _MAKING_LOCK):
                self._unlock("locks", name)
        self.sweep()

    def _take_away(self, name: str) -> None:
        """Move a layer to what the sweep removes, unless somebody counts on it."""
        lock = _lock_unless_held(self.path("locks", name))
        if lock is not None:
            os.rename(self.path("layers", name), self.path("tmp", secrets.token_hex(8)))
            os.unlink(self.path("locks", name))
            os.close(lock)

    def _unlock(self, directory: str, name: str) -> None:
        """Remove a lock's file, unless somebody holds it."""
        path = self.path(directory, name)
        with contextlib.suppress(IsADirectoryError):
            if (fd := try_exclusive(path)) is not None:
                try:
                    os.unlink(path)
                finally:
                    os.close(fd)

    def sweep(self) -> None:
        """Remove what processes that were killed had begun; what cannot be removed stays."""
        dead = []
        with self.locked():
            for name in self._names("tmp", _OWN_TEMPORARY):
                path = self.path("tmp", name)
                if not os.path.isdir(path) or os.path.islink(path):
                    with contextlib.suppress(FileNotFoundError):  # its maker has removed it
                        os.unlink(path)
                elif (fd := try_exclusive(path)) is not None:
                    dead.append((path, fd))
        for path, fd in dead:
            with contextlib.suppress(OSError):
                remove_tree(path)
            os.close(fd)


def _write_through(path: str, data: bytes) -> None:
    """Write a new file, and wait until the disk has it."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _lock_unless_held(path: str) -> int | None:
    """Hold a lock file alone, made where it is not there; None where somebody holds it."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    return try_exclusive(path)
