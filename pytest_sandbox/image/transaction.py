"""One image on its way into the store: its layers are pinned from the first look at them until the
index names them.
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
from pytest_sandbox.image.chain import Lower, inherited, make_layer
from pytest_sandbox.image.decompress import Plain
from pytest_sandbox.image.extract import unpack
from pytest_sandbox.image.flatten import fold
from pytest_sandbox.image.index import FORMAT, LayerFacts, Record
from pytest_sandbox.image.locks import exclusive_lock
from pytest_sandbox.image.prune import collect, remove_abandoned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pytest_sandbox.image.size_limits import Budget, Limits
    from pytest_sandbox.image.store import Store

__all__ = ["Adding", "unpack_verified"]

#: Layers that are fetched and unpacked at the same time, as docker's default is.
_AT_ONCE: Final = 3
#: What mount(2) takes in one page, less room for the other options of an overlay.
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
) -> tuple[str, LayerFacts]:
    """Unpack a compressed or plain layer into the empty directory ``target``; what is given of its
    digests and size must be so. ``budget`` counts what the image's layers bring together.

    Returns its diff_id, and what is known of it. Raises ImageError; what was written by then is of
    no worth.
    """
    label = f"the layer {digest or diff_id}: " if digest or diff_id else ""
    try:
        with Plain(raw, limits, budget) as plain:
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
                f"{label}its {what} is {found}, not {expected}: it was damaged or forged on its "
                "way. Try again, or from elsewhere."
            )
    implied = tuple(map(os.fsdecode, result.implied))
    not_kept = dict(result.not_kept)
    whiteouts = tuple(map(os.fsdecode, result.whiteouts))
    return plain.diff_id, LayerFacts(
        result.size, result.entries, result.opaque_root, implied, not_kept, whiteouts
    )


class Adding:
    """A context: what is pinned within it stays in the store at least until its end.

    Where an exception leaves it, nothing of what it has made stays. ``stopping`` is set when what
    is being made is no longer wanted: threads that make layers end soon after.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.stopping = threading.Event()
        self._pins: list[int] = []
        self._guard = threading.Lock()

    def __enter__(self) -> Self:
        self.store.prepare()
        remove_abandoned(self.store)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for fd in self._pins:
            os.close(fd)
        if kind is not None and self._pins:
            with contextlib.suppress(OSError, ImageError):  # the first error says more
                collect(self.store)

    def layer(self, key: str, make: Callable[[str], LayerFacts]) -> LayerFacts:
        """Return a layer's facts; where the store has not got it whole, ``make`` fills an empty
        directory. Two processes never make it at the same time.
        """
        self._pin(key)
        if (facts := self.store.whole_layer(key)) is not None:
            return facts
        with exclusive_lock(self.store.making_path(key), self.stopping):
            if (facts := self.store.whole_layer(key)) is None:
                facts = self._made(key, make)
        return facts

    def _made(self, key: str, make: Callable[[str], LayerFacts]) -> LayerFacts:
        with self.store.workplace() as work:
            facts = make(_made_directory(work))
            self.store.publish(work, key, facts)
        return facts

    def unknown_layer(
        self, make: Callable[[str], tuple[str, LayerFacts]]
    ) -> tuple[str, LayerFacts]:
        """Make a layer whose key is known only when it is there."""
        with self.store.workplace() as work:
            key, facts = make(_made_directory(work))
            self._pin(key)
            with exclusive_lock(self.store.making_path(key), self.stopping):
                if self.store.whole_layer(key) is None:
                    self.store.publish(work, key, facts)
        return key, facts

    def layers(self, makers: Sequence[tuple[str, Callable[[str], LayerFacts]]]) -> None:
        """Make several layers at once; a layer that is named twice is made once.

        The first failure, or an interrupt, ends the others and is raised.
        """
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="pytest-sandbox-layer") as pool:
            futures = [pool.submit(self.layer, key, make) for key, make in dict(makers).items()]
            try:
                done = wait(futures, return_when=FIRST_EXCEPTION).done
                for future in done:
                    future.result()
            except BaseException:
                self.stopping.set()
                pool.shutdown(cancel_futures=True)
                self.stopping.clear()  # all threads have ended; another place may be asked
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
        """Write the image into the index, under ``names`` (full references, which it takes away
        from others); returns its id.

        ``digest`` is what a registry calls it by, its manifest's or its index'; ``base`` and
        ``points`` are as in :class:`Record`.
        """
        facts = [self.store.layer_facts(key) for key in keys]
        visible = _visible(keys, facts)
        mounts = visible if base else self._folded(self._described(visible))
        size = sum(one.size for one in facts)
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
                index.call(name, image_id, digest)
        return image_id

    def _described(self, keys: list[str]) -> list[str]:
        """Put a layer on top where directories of the chain look different from those of the
        layer that has them, or would show marks of deletions.
        """
        lowers = [self._lower(key) for key in keys]
        if not (attributes := inherited(lowers)):
            return keys
        top = _key_of("attributes", keys)

        def make(target: str) -> LayerFacts:
            return LayerFacts(entries=make_layer(attributes, os.fsencode(target)))

        self.layer(top, make)
        return [top, *keys]

    def _lower(self, key: str) -> Lower:
        facts = self.store.layer_facts(key)
        paths = (frozenset(map(os.fsencode, found)) for found in (facts.implied, facts.whiteouts))
        return Lower(os.fsencode(self.store.layer_path(key)), *paths)

    def _folded(self, keys: list[str]) -> list[str]:
        """Fold the lowest layers into one where mount(2) would not take the names of all."""
        lengths = accumulate(len(os.fsencode(self.store.layer_path(key))) + 1 for key in keys)
        fitting = sum(length <= _LONGEST_LOWER for length in lengths)
        if fitting == len(keys):
            return keys
        high, low = keys[: fitting - 1], keys[fitting - 1 :]
        chain = _key_of("folded", low)
        self.layer(chain, lambda target: self._fold(low, target))
        return [*high, chain]

    def _fold(self, keys: list[str], target: str) -> LayerFacts:
        fold([os.fsencode(self.store.layer_path(key)) for key in keys], os.fsencode(target))
        return LayerFacts()

    def _pin(self, key: str) -> None:
        fd = self.store.pin(key)
        with self._guard:
            self._pins.append(fd)


def _key_of(what: str, keys: Sequence[str]) -> str:
    """Return the key of a layer that is made of others."""
    return f"sha256:{hashlib.sha256(' '.join([what, *keys]).encode()).hexdigest()}"


def _made_directory(work: str) -> str:
    made = os.path.join(work, "fs")
    os.mkdir(made)
    # a root that nothing describes; the store is closed to others
    os.chmod(made, 0o755)  # noqa: S103
    return made


def _visible(keys: Sequence[str], facts: Sequence[LayerFacts]) -> list[str]:
    """Return the keys that a container sees, topmost first, each once: nothing below an opaque
    root, and no layer without an entry.
    """
    visible: list[str] = []
    for key, one in zip(reversed(keys), reversed(facts), strict=True):
        if key not in visible and (one.entries or one.size):
            visible.append(key)
        if one.opaque_root:
            break
    return visible or list(keys[:1])
