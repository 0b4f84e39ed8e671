"""One image on its way into the store: its layers are pinned from the first look at them until the index names them."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Self

from pytest_sandbox.errors import ImageError
from pytest_sandbox.image.folders import adopt, fold
from pytest_sandbox.image.locks import share
from pytest_sandbox.image.store import LayerFacts, Record
from pytest_sandbox.image.stream import Plain
from pytest_sandbox.image.unpack import unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pytest_sandbox.image.limits import Limits
    from pytest_sandbox.image.store import Store

__all__ = ["Adding", "unpack_verified"]

#: Layers that are fetched and unpacked at the same time, as docker's default is.
_AT_ONCE: Final = 3
#: What mount(2) takes in one page, less room for the other options of an overlay.
_LONGEST_LOWER: Final = 3500


def unpack_verified(
    raw: Iterable[bytes], target: str, limits: Limits, *, digest: str = "", size: int | None = None, diff_id: str = ""
) -> tuple[str, LayerFacts]:
    """Unpack a compressed or plain layer into the empty folder ``target``; what is given of its digests and size must be so.

    Returns its diff_id, and what is known of it. Raises ImageError; what was written by then is of no worth.
    """
    label = f"the layer {digest or diff_id}: " if digest or diff_id else ""
    try:
        with Plain(raw, limits) as plain:
            result = unpack(plain, target, limits, end_required=not diff_id)
    except ImageError as error:
        raise ImageError(f"{label}{error}") from error
    for what, expected, found in (
        ("digest", digest, plain.digest),
        ("size", size, plain.raw_bytes if size is not None else None),
        ("diff_id", diff_id, plain.diff_id),
    ):
        if expected not in ("", found):
            raise ImageError(
                f"{label}its {what} is {found}, not {expected}: it was damaged or forged on its way. Try again, or from elsewhere."
            )
    implied = tuple(map(os.fsdecode, result.implied))
    return plain.diff_id, LayerFacts(result.size, result.entries, result.opaque_root, implied, dict(result.not_kept))


class Adding:
    """A context: what is pinned within it stays in the store at least until its end."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._pins: list[int] = []
        self._made: set[str] = set()
        self._guard = threading.Lock()

    def __enter__(self) -> Self:
        self.store.prepare()
        self.store.sweep()
        return self

    def __exit__(self, *exc: object) -> None:
        for fd in self._pins:
            os.close(fd)

    def layer(self, key: str, make: Callable[[str], LayerFacts]) -> LayerFacts:
        """Return a layer's facts; where the store has not got it, ``make`` fills an empty folder. Two processes never make it twice."""
        pin = self._pin(key, shared=True)
        if self.store.has_layer(key):
            return self.store.layer_facts(key)
        self._release(pin)
        pin = self._pin(key, shared=False)
        if not self.store.has_layer(key):
            with self.store.workplace() as work:
                self.store.publish(work, key, make(_made_folder(work)))
            self._made.add(key)
        share(pin)
        return self.store.layer_facts(key)

    def unknown_layer(self, make: Callable[[str], tuple[str, LayerFacts]]) -> tuple[str, LayerFacts]:
        """Make a layer whose key is known only when it is there."""
        with self.store.workplace() as work:
            key, facts = make(_made_folder(work))
            self._pin(key, shared=True)
            if not self.store.has_layer(key):
                self.store.publish(work, key, facts)
                self._made.add(key)
        return key, facts

    def layers(self, makers: Sequence[tuple[str, Callable[[str], LayerFacts]]]) -> list[LayerFacts]:
        """Make several layers at once; the first failure is raised when all have ended."""
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="pytest-sandbox-layer") as pool:
            futures = [pool.submit(self.layer, key, make) for key, make in makers]
            try:
                return [future.result() for future in futures]
            except BaseException:
                for future in futures:
                    future.cancel()
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
        """Write the image into the index, under ``names`` (full references, which it takes away from others); returns its id.

        ``digest`` is what a registry calls it by, its manifest's or its index'; ``base`` and ``points`` are as in :class:`Record`.
        """
        facts = [self.store.layer_facts(key) for key in keys]
        self._adopt(keys, facts)
        visible = _visible(keys, facts)
        mounts = visible if base else self._folded(visible)
        size = sum(one.size for one in facts)
        with self.store.locked() as index:
            image_id = self.store.put_document(config)
            manifest_id = self.store.put_document(manifest) if manifest else ""
            with open(self.store.path("images", image_id.removeprefix("sha256:")), "a", encoding="utf-8"):
                pass
            known = index.images.get(image_id)
            stored = known.stored if known else time.time()
            index.images[image_id] = Record(tuple(keys), tuple(mounts), size, stored, manifest_id, base, points or {})
            for name in names:
                index.call(name, image_id, digest)
        return image_id

    def _adopt(self, keys: Sequence[str], facts: Sequence[LayerFacts]) -> None:
        folders = [os.fsencode(self.store.layer_path(key)) for key in keys]
        for at, (key, one) in enumerate(zip(keys, facts, strict=True)):
            if key in self._made and one.implied:
                adopt(folders[at], list(map(os.fsencode, one.implied)), folders[:at][::-1])

    def _folded(self, keys: list[str]) -> list[str]:
        """Fold the lowest layers into one where mount(2) would not take the names of all."""
        lengths = accumulate(len(os.fsencode(self.store.layer_path(key))) + 1 for key in keys)
        fitting = sum(length <= _LONGEST_LOWER for length in lengths)
        if fitting == len(keys):
            return keys
        high, low = keys[: fitting - 1], keys[fitting - 1 :]
        chain = f"sha256:{hashlib.sha256(' '.join(['folded', *low]).encode()).hexdigest()}"
        self.layer(chain, lambda target: self._fold(low, target))
        return [*high, chain]

    def _fold(self, keys: list[str], target: str) -> LayerFacts:
        fold([os.fsencode(self.store.layer_path(key)) for key in keys], os.fsencode(target))
        return LayerFacts()

    def _pin(self, key: str, *, shared: bool) -> int:
        fd = self.store.pin(key, shared=shared)
        with self._guard:
            self._pins.append(fd)
        return fd

    def _release(self, fd: int) -> None:
        with self._guard:
            self._pins.remove(fd)
        os.close(fd)


def _made_folder(work: str) -> str:
    folder = os.path.join(work, "fs")
    os.mkdir(folder)
    os.chmod(folder, 0o755)  # noqa: S103 - a root that nothing describes; the store above it is closed to others
    return folder


def _visible(keys: Sequence[str], facts: Sequence[LayerFacts]) -> list[str]:
    """Return the keys that a container sees, topmost first, each once: nothing below an opaque root, and no layer without an entry."""
    visible: list[str] = []
    for key, one in zip(reversed(keys), reversed(facts), strict=True):
        if key not in visible and (one.entries or one.size):
            visible.append(key)
        if one.opaque_root:
            break
    return visible or list(keys[:1])
