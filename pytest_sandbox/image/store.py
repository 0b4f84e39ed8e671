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
import secrets
import stat
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import ImageError
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
from pytest_sandbox.linux.file_lock import lock_directory, lock_shared, try_lock
from pytest_sandbox.linux.removal import remove_tree
from pytest_sandbox.paths import images

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Store", "UnknownImage"]

_DIRECTORIES: Final = ("documents", "layers", "images", "locks", "tmp")
_PRIVATE: Final = 0o700
_LOCK_SECONDS: Final = 60.0
_REMOVED: Final = "It was removed: pull or load it again."


class UnknownImage(ImageError):
    """No image named ``reference`` (or with that id) is stored; ``remedy`` says how to get it."""

    def __init__(self, reference: str, remedy: str = _REMOVED) -> None:
        super().__init__(reference, remedy)
        self.reference = reference
        self.remedy = remedy

    def __str__(self) -> str:
        found = f"there is no stored image {self.reference!r}"
        return f"{found}. {self.remedy}" if self.remedy else found


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
        return self.path("locks", f"{hex_of(key)}.making")

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
                if (fd := try_lock(path)) is not None:
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
        return lock_shared(self.path("locks", hex_of(key)))

    # -- use

    def hold(self, image_id: str) -> int:
        """Keep an image from being removed while a container lives on it; returns a descriptor to
        close. Marks the image as used now.
        """
        try:
            fd = lock_shared(self.path("images", hex_of(image_id)), create=False)
        except FileNotFoundError:
            raise UnknownImage(image_id) from None
        with contextlib.suppress(OSError):  # a store that is read only
            os.utime(fd)
        return fd

    def last_used(self, image_id: str) -> float:
        """Return when a container was last started on the image, or when it was stored."""
        with contextlib.suppress(FileNotFoundError):
            return os.stat(self.path("images", hex_of(image_id))).st_mtime
        return 0.0


def _write_through(path: str, data: bytes) -> None:
    """Write a new file, and wait until the disk has it."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
