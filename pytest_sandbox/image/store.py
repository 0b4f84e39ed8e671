"""The image store: layers by digest, images by the digest of their configuration, and names. All
processes of a user share it.

::

    index.json        names and images; replaced by rename while ``lock`` is held
    lock              filelock's, held for a short time
    documents/HEX     configurations and manifests
    layers/HEX/       fs: the directory that overlayfs mounts; layer.json: its metadata
    images/HEX        locked (shared) while a container uses the image; its mtime is the last use
    locks/HEX         locked (shared) while a process needs the layer HEX and no image has it yet
    locks/HEX.making  locked while a process makes the layer HEX
    tmp/              unfinished files; those without a lock are a killed process's, and are removed

A file gets its final name when it is complete, so a process can be killed at any time. Files with
other names do not belong to the store and are left alone. There are no reference counts: a layer is
in use if an image in the index has it.
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
    CORRUPT_ERRORS,
    FORMAT,
    Index,
    LayerInfo,
    hex_of,
    read_index,
    read_layer_info,
    to_json,
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
    """No image with the name or id ``reference`` is stored; ``remedy`` says what to do."""

    def __init__(self, reference: str, remedy: str = _REMOVED) -> None:
        super().__init__(reference, remedy)
        self.reference = reference
        self.remedy = remedy

    def __str__(self) -> str:
        found = f"there is no stored image {self.reference!r}"
        return f"{found}. {self.remedy}" if self.remedy else found


class Store:
    """The store in one directory. An object has no state except the path."""

    def __init__(self, directory: str | None = None) -> None:
        self.directory = directory or images()

    def path(self, *parts: str) -> str:
        return os.path.join(self.directory, *parts)

    def layer_path(self, key: str) -> str:
        """Return the directory that overlayfs mounts."""
        return self.path("layers", hex_of(key), "fs")

    def build_lock_path(self, key: str) -> str:
        """Return the file that is locked while a layer is made."""
        return self.path("locks", f"{hex_of(key)}.making")

    def find_layer(self, key: str) -> LayerInfo | None:
        """Return the metadata of a stored layer, None if it is missing or damaged.

        The content of its files is not verified. Raises ImageError for a newer format.
        """
        if not os.path.isdir(self.layer_path(key)):
            return None
        try:
            return self._read_layer_info(key)
        except (OSError, *CORRUPT_ERRORS):
            return None

    def layer_info(self, key: str) -> LayerInfo:
        """Return the metadata of a stored layer. Raises ImageError if it is damaged or missing."""
        try:
            return self._read_layer_info(key)
        except (OSError, *CORRUPT_ERRORS):
            raise ImageError(
                f"the stored layer {key} is damaged or missing. Pull or load the image again."
            ) from None

    def _read_layer_info(self, key: str) -> LayerInfo:
        path = self.path("layers", hex_of(key), "layer.json")
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return read_layer_info(file)

    def document(self, digest: str) -> bytes:
        """Return a verified stored document. Raises ImageError if it is damaged or missing."""
        data = self.find_document(digest)
        if data is None:
            raise ImageError(
                f"the stored document {digest} is damaged or missing. Pull or load the image again."
            )
        return data

    def find_document(self, digest: str) -> bytes | None:
        """Return a stored document, verified; None where it is missing or damaged."""
        try:
            with open(self.path("documents", hex_of(digest)), "rb") as file:
                data = file.read()
        except OSError:
            return None
        return data if f"sha256:{hashlib.sha256(data).hexdigest()}" == digest else None

    def is_complete(self, image_id: str) -> bool:
        """Whether all of an image is there, in today's format; what files hold is not looked at."""
        record = self.index().images.get(image_id)
        if record is None or record.format < FORMAT:
            return False
        documents = filter(None, (image_id, record.manifest))
        return (
            all(self.find_layer(key) for key in {*record.layers, *record.mounts})
            and all(self.find_document(one) is not None for one in documents)
            and os.path.exists(self.path("images", hex_of(image_id)))
        )

    def index(self) -> Index:
        """Return the index, which must not be modified. No lock is needed, because the file is
        replaced by rename.

        Raises ImageError for a store of another user, of a newer version, or a damaged one.
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
        except CORRUPT_ERRORS as error:
            raise ImageError(
                f"{path} is damaged ({str(error)[:200]}). Move this file away, and pull or load "
                "the images again; stored layers are reused."
            ) from error

    def _check_owner(self, status: os.stat_result) -> None:
        """Raise ImageError for a store that other users could have modified."""
        if not stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{self.directory} is not a directory")
        if status.st_uid != os.geteuid():
            raise ImageError(
                f"{self.directory} belongs to another user (uid {status.st_uid}). Set "
                "PYTEST_SANDBOX_HOME to a directory of your own."
            )

    # -- writing

    def prepare(self) -> None:
        """Create the store's directories, with mode 0700: layers contain setuid programs and
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
        """Lock the index and return a copy, which is written at the end of the context if it was
        modified, unless the context ends with an exception.

        Raises ImageError if another process has held the lock for 60 s.
        """
        from filelock import FileLock, Timeout

        self.prepare()
        lock = FileLock(self.path("lock"))
        try:
            lock.acquire(timeout=_LOCK_SECONDS, poll_interval=0.005)
        except Timeout:
            raise ImageError(
                f"another process has held {self.path('lock')} for {_LOCK_SECONDS:.0f} s. "
                f"`fuser {self.path('lock')}` prints its PID; try again when it has exited."
            ) from None
        try:
            read = self.index()
            index = Index(dict(read.names), dict(read.images), dict(read.digests))
            before = to_json(index)
            yield index
            after = to_json(index)
            if after != before:
                self._replace("index.json", after.encode())
        finally:
            lock.release()

    def _replace(self, name: str, data: bytes) -> None:
        """Replace a file so that a power loss leaves the old or the new one."""
        new = self.path("tmp", secrets.token_hex(8))
        try:
            _write_through(new, data)
            os.replace(new, self.path(name))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise

    def put_document(self, data: bytes) -> str:
        """Store a document and return its digest. The index must be locked."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if self.find_document(digest) is None:
            self._replace(os.path.join("documents", hex_of(digest)), data)
        return digest

    def put_image_file(self, image_id: str) -> None:
        """Create the file that containers of the image lock. The index must be locked."""
        path = self.path("images", hex_of(image_id))
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    @contextlib.contextmanager
    def temporary_directory(self) -> Iterator[str]:
        """Yield an empty directory on the store's file system, which is removed at the end."""
        with self.locked():  # or remove_abandoned() could remove it before it is locked
            path = self.path("tmp", secrets.token_hex(8))
            os.mkdir(path, _PRIVATE)
            fd = lock_directory(path)
        try:
            yield path
        finally:
            remove_tree(path)
            os.close(fd)

    def publish(self, work: str, key: str, info: LayerInfo) -> None:
        """Move the complete layer ``work``/fs to its final name, and replace a damaged one. The
        caller holds its lock.
        """
        made = os.path.join(work, "layer")
        os.mkdir(made, _PRIVATE)
        os.rename(os.path.join(work, "fs"), os.path.join(made, "fs"))
        text = json.dumps(asdict(info), ensure_ascii=False)
        with open(os.path.join(made, "layer.json"), "xb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
        target = self.path("layers", hex_of(key))
        try:
            os.rename(made, target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            self._replace_damaged(key, made, target)

    def sync_layer(self, key: str) -> None:
        """Write a layer's metadata to disk, before the index contains the layer. When all layers
        of an image are synced together, one commit of the journal writes them.
        """
        with open(self.path("layers", hex_of(key), "layer.json"), "rb") as file:
            os.fsync(file.fileno())

    def _replace_damaged(self, key: str, made: str, target: str) -> None:
        """Replace a damaged layer, unless a container uses it."""
        with self.locked() as index, contextlib.ExitStack() as held:
            for image_id, record in index.images.items():
                path = self.path("images", hex_of(image_id))
                if key not in (*record.layers, *record.mounts):
                    continue
                if (fd := try_lock(path)) is not None:
                    held.callback(os.close, fd)
                elif os.path.exists(path):
                    raise ImageError(
                        f"the stored layer {key} is damaged, and a container uses it. "
                        "Close the container, and pull or load the image again."
                    )
            os.rename(
                target, self.path("tmp", secrets.token_hex(8))
            )  # remove_abandoned() removes it
            os.rename(made, target)

    def lock_layer(self, key: str) -> int:
        """Lock a layer, so that it is not removed. Returns the descriptor that holds the lock."""
        return lock_shared(self.path("locks", hex_of(key)))

    # -- use

    def hold(self, image_id: str) -> int:
        """Lock an image, so that it is not removed while a container uses it, and set its time of
        last use. Returns the descriptor that holds the lock.
        """
        try:
            fd = lock_shared(self.path("images", hex_of(image_id)), create=False)
        except FileNotFoundError:
            raise UnknownImage(image_id) from None
        with contextlib.suppress(OSError):  # the store is on a read-only file system
            os.utime(fd)
        return fd

    def last_used(self, image_id: str) -> float:
        """Return when a container last used the image, or when it was stored (Unix time)."""
        with contextlib.suppress(FileNotFoundError):
            return os.stat(self.path("images", hex_of(image_id))).st_mtime
        return 0.0


def _write_through(path: str, data: bytes) -> None:
    """Write a new file and sync it to disk."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
