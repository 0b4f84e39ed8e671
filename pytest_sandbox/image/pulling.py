"""From a reference to a stored image: where it is asked for, and what need not be asked.

``$PYTEST_SANDBOX_MIRRORS`` names registries that are tried first, as ``[REGISTRY=]HOST[:PORT][/PREFIX]``, separated by commas (docker.io where
REGISTRY is left out). ``$PYTEST_SANDBOX_REGISTRY_PREFIX``, ``HOST[:PORT][/PREFIX]``, takes docker.io's place altogether.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import ImageError
from pytest_sandbox.image.adding import Adding, unpack_verified
from pytest_sandbox.image.documents import Descriptor, Platform, read_image
from pytest_sandbox.image.limits import limits_from_environment
from pytest_sandbox.image.reference import Reference, parse_reference
from pytest_sandbox.image.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_sandbox.image.limits import Limits
    from pytest_sandbox.image.store import LayerFacts, Store

__all__ = ["places", "pull"]

_HUB = "docker.io"


def pull(text: str, store: Store, progress: Callable[[str, str, int, int], None] | None = None) -> str:
    """Fetch an image; returns its id. Raises ImageError: the last place's, with what was wrong at those before."""
    reference = parse_reference(text)
    known = store.index().find(reference)
    if reference.digest and known:
        return known
    limits = limits_from_environment()
    failures: list[str] = []
    for registry, repository in places(reference):
        try:
            with Registry(registry, limits) as asked:
                return _Pull(reference, store, asked, repository, limits, progress or (lambda *_: None)).run()
        except ImageError as error:
            last, said = error, f"{registry}/{repository}: {error}"
            failures.append(said)
    if len(failures) == 1:
        raise last
    raise ImageError(f"{reference} could not be pulled from any of its places. " + " ".join(failures))


def places(reference: Reference) -> list[tuple[str, str]]:
    """Return where an image may be fetched from, the preferred place first: registries and repositories."""
    own = (reference.registry, reference.repository)
    prefix = os.environ.get("PYTEST_SANDBOX_REGISTRY_PREFIX", "").strip().strip("/")
    if prefix and reference.registry == _HUB:
        own = _below(prefix, reference.repository)
    mirrors = []
    for item in filter(None, map(str.strip, os.environ.get("PYTEST_SANDBOX_MIRRORS", "").split(","))):
        registry, equals, place = item.partition("=")
        if not equals:
            registry, place = _HUB, item
        if registry == reference.registry:
            mirrors.append(_below(place.strip("/"), reference.repository))
    return [*mirrors, own]


def _below(place: str, repository: str) -> tuple[str, str]:
    host, _, folder = place.removeprefix("https://").removeprefix("http://").partition("/")
    return host, f"{folder}/{repository}" if folder else repository


@dataclass
class _Pull:
    """One pull from one place."""

    reference: Reference
    store: Store
    registry: Registry
    repository: str
    limits: Limits
    progress: Any

    def run(self) -> str:
        known = self.store.index().names.get(self.reference.full)
        if known and self._is_current():
            return known
        with Adding(self.store) as adding:
            top, data = self.registry.manifest(self.repository, self.reference.wanted)
            documents = read_image(self._document, top, data, Platform.of_host(), self.limits)
            adding.layers([(diff_id, self._maker(one, diff_id)) for one, diff_id in zip(documents.layers, documents.diff_ids, strict=True)])
            names = [self.reference.full]
            return adding.register(documents.config, documents.diff_ids, names, manifest=documents.manifest, digest=top.digest)

    def _is_current(self) -> bool:
        """Whether the tag still means what is stored: one request without a body, which counts towards nobody's rate limit."""
        stored = self.store.index().digests.get(self.reference.full)
        return bool(stored) and stored == self.registry.digest_of(self.repository, self.reference.wanted)

    def _document(self, descriptor: Descriptor) -> bytes:
        if self.store.has_document(descriptor.digest):
            return self.store.document(descriptor.digest)
        return self.registry.document(self.repository, descriptor)

    def _maker(self, descriptor: Descriptor, diff_id: str) -> Callable[[str], LayerFacts]:
        def make(target: str) -> LayerFacts:
            return unpack_verified(
                self._reported(descriptor), target, self.limits, digest=descriptor.digest, size=descriptor.size, diff_id=diff_id
            )[1]

        return make

    def _reported(self, descriptor: Descriptor) -> Iterator[bytes]:
        done = 0
        for data in self.registry.blob(self.repository, descriptor):
            yield data
            done += len(data)
            self.progress(descriptor.digest, "downloading", done, descriptor.size)
