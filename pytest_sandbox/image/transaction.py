"""Adding an image to the store. Its layers are locked (shared) from the first lookup until the
index contains the image.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Self

from pytest_sandbox.errors import ImageError
from pytest_sandbox.image.chain import Lower, inherited_attributes, make_layer
from pytest_sandbox.image.decompress import PlainStream
from pytest_sandbox.image.extract import unpack
from pytest_sandbox.image.flatten import flatten
from pytest_sandbox.image.index import FORMAT, LayerInfo, Record
from pytest_sandbox.image.locks import exclusive_lock
from pytest_sandbox.image.prune import collect, remove_abandoned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pytest_sandbox.image.size_limits import Budget, Limits
    from pytest_sandbox.image.store import Store

__all__ = ["Transaction", "unpack_verified"]

#: Layers that are fetched and extracted at the same time; docker's default.
_AT_ONCE: Final = 3
#: mount(2) takes one page of options; the rest is for the other options of an overlay.
_LONGEST_LOWER: Final = 3500


def unpack_verified(
    raw: Iterable[bytes],
    target: str,
    limits: Limits,
    *,
    digest: str = "",
    size: int | None = None,
    diff_id: str = "",
    budget: Budget | None = None,
) -> tuple[str, LayerInfo]:
    """Extract a compressed or plain layer into the empty directory ``target``, and verify those of
    its digests and its size that are given.

    ``budget`` counts the bytes and entries of all layers of the image. Returns the diff_id and the
    layer's metadata. After an ImageError, the directory's content is undefined.
    """
    label = f"the layer {digest or diff_id}: " if digest or diff_id else ""
    try:
        with PlainStream(raw, limits, budget) as plain:
            result = unpack(plain, target, limits, end_required=not diff_id, budget=budget)
    except ImageError as error:
        raise ImageError(f"{label}{error}") from error
    for what, expected, found in (
        ("digest", digest, plain.digest),
        ("size", size, plain.raw_bytes if size is not None else None),
        ("diff_id", diff_id, plain.diff_id),
    ):
        if expected not in ("", found):
            raise ImageError(
                f"{label}its {what} is {found}, not {expected}: it was damaged or forged in "
                "transit. Try again, or use another source."
            )
    implied = tuple(map(os.fsdecode, result.implied))
    not_kept = dict(result.not_kept)
    whiteouts = tuple(map(os.fsdecode, result.whiteouts))
    return plain.diff_id, LayerInfo(
        result.size, result.entries, result.opaque_root, implied, not_kept, whiteouts
    )


class Transaction:
    """A context within which layers are added to the store and an image of them is registered.

    Layers that it uses are not removed before its end. When it ends with an exception, what it
    added is removed. ``stopping`` is set to end the threads that add layers.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.stopping = threading.Event()
        self._locks: list[int] = []
        self._guard = threading.Lock()

    def __enter__(self) -> Self:
        self.store.prepare()
        remove_abandoned(self.store)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for fd in self._locks:
            os.close(fd)
        if kind is not None and self._locks:
            with contextlib.suppress(OSError, ImageError):  # keep the first error
                collect(self.store)

    def add_layer(self, key: str, make: Callable[[str], LayerInfo]) -> LayerInfo:
        """Return a layer's metadata. A layer that is not in the store is made by ``make``, which
        fills an empty directory; never by two processes at the same time.
        """
        self._lock_layer(key)
        if (info := self.store.find_layer(key)) is not None:
            return info
        with exclusive_lock(self.store.build_lock_path(key), self.stopping):
            if (info := self.store.find_layer(key)) is None:
                info = self._make(key, make)
        return info

    def _make(self, key: str, make: Callable[[str], LayerInfo]) -> LayerInfo:
        with self.store.temporary_directory() as work:
            info = make(_new_directory(work))
            self.store.publish(work, key, info)
        return info

    def add_layer_by_content(
        self, make: Callable[[str], tuple[str, LayerInfo]]
    ) -> tuple[str, LayerInfo]:
        """Add a layer whose digest is not known before: ``make`` returns it with the metadata."""
        with self.store.temporary_directory() as work:
            key, info = make(_new_directory(work))
            self._lock_layer(key)
            with exclusive_lock(self.store.build_lock_path(key), self.stopping):
                if self.store.find_layer(key) is None:
                    self.store.publish(work, key, info)
        return key, info

    def add_layers(self, makers: Sequence[tuple[str, Callable[[str], LayerInfo]]]) -> None:
        """Add several layers at the same time; a layer that is listed twice is made once.

        The first failure, or a KeyboardInterrupt, ends the other threads and is raised.
        """
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="pytest-sandbox-layer") as pool:
            futures = [pool.submit(self.add_layer, key, make) for key, make in dict(makers).items()]
            try:
                done = wait(futures, return_when=FIRST_EXCEPTION).done
                for future in done:
                    future.result()
            except BaseException:
                self.stopping.set()
                pool.shutdown(cancel_futures=True)
                self.stopping.clear()  # all threads have ended; the next mirror is tried
                raise

    def register(
        self,
        config: bytes,
        keys: Sequence[str],
        names: Sequence[str],
        *,
        manifest: bytes = b"",
        digest: str = "",
        base: str = "",
        points: dict[str, str] | None = None,
    ) -> str:
        """Add the image to the index and return its id.

        ``names`` are full references, which are removed from other images. ``digest`` is that of
        the manifest or index in the registry; ``base`` and ``points`` are as in :class:`Record`.
        """
        info = [self.store.layer_info(key) for key in keys]
        visible = _visible(keys, info)
        mounts = visible if base else self._flattened(self._with_attributes(visible))
        size = sum(one.size for one in info)
        for key in {*keys, *mounts}:
            self.store.sync_layer(key)
        with self.store.locked() as index:
            image_id = self.store.put_document(config)
            manifest_id = self.store.put_document(manifest) if manifest else ""
            self.store.put_image_file(image_id)
            known = index.images.get(image_id)
            stored = known.stored if known else time.time()
            index.images[image_id] = Record(
                tuple(keys), tuple(mounts), size, stored, manifest_id, base, points or {}, FORMAT
            )
            for name in names:
                index.set_name(name, image_id, digest)
        return image_id

    def _with_attributes(self, keys: list[str]) -> list[str]:
        """Add a layer of directories on top, if :func:`inherited_attributes` finds any."""
        lowers = [self._lower(key) for key in keys]
        if not (attributes := inherited_attributes(lowers)):
            return keys
        top = _key_of("attributes", keys)

        def make(target: str) -> LayerInfo:
            return LayerInfo(entries=make_layer(attributes, os.fsencode(target)))

        self.add_layer(top, make)
        return [top, *keys]

    def _lower(self, key: str) -> Lower:
        info = self.store.layer_info(key)
        paths = (frozenset(map(os.fsencode, found)) for found in (info.implied, info.whiteouts))
        return Lower(os.fsencode(self.store.layer_path(key)), *paths)

    def _flattened(self, keys: list[str]) -> list[str]:
        """Flatten the lowest layers into one if the paths of all do not fit into mount(2)."""
        lengths = accumulate(len(os.fsencode(self.store.layer_path(key))) + 1 for key in keys)
        fitting = sum(length <= _LONGEST_LOWER for length in lengths)
        if fitting == len(keys):
            return keys
        high, low = keys[: fitting - 1], keys[fitting - 1 :]
        chain = _key_of("flattened", low)
        self.add_layer(chain, lambda target: self._flatten(low, target))
        return [*high, chain]

    def _flatten(self, keys: list[str], target: str) -> LayerInfo:
        flatten([os.fsencode(self.store.layer_path(key)) for key in keys], os.fsencode(target))
        return LayerInfo()

    def _lock_layer(self, key: str) -> None:
        fd = self.store.lock_layer(key)
        with self._guard:
            self._locks.append(fd)


def _key_of(what: str, keys: Sequence[str]) -> str:
    """Return the key of a layer that is made from others."""
    return f"sha256:{hashlib.sha256(' '.join([what, *keys]).encode()).hexdigest()}"


def _new_directory(work: str) -> str:
    made = os.path.join(work, "fs")
    os.mkdir(made)
    # The mode of a root that no layer describes; other users cannot enter the store.
    os.chmod(made, 0o755)  # noqa: S103
    return made


def _visible(keys: Sequence[str], info: Sequence[LayerInfo]) -> list[str]:
    """Return the keys of layers to mount, topmost first, each once: none below an opaque root, and
    none without entries.
    """
    visible: list[str] = []
    for key, one in zip(reversed(keys), reversed(info), strict=True):
        if key not in visible and (one.entries or one.size):
            visible.append(key)
        if one.opaque_root:
            break
    return visible or list(keys[:1])
