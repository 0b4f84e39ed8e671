"""From a reference to a stored image: where it is asked for, and what need not be asked.

``$PYTEST_SANDBOX_MIRRORS`` names registries that are tried first, as
``[REGISTRY=]HOST[:PORT][/PREFIX]``, separated by commas (docker.io where REGISTRY is left out).
``$PYTEST_SANDBOX_REGISTRY_PREFIX``, ``HOST[:PORT][/PREFIX]``, takes docker.io's place altogether.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import ImageError
from pytest_sandbox.image.manifest import Descriptor, Platform, read_image
from pytest_sandbox.image.reference import REGISTRY, Reference, parse_reference
from pytest_sandbox.image.registry import Registry
from pytest_sandbox.image.size_limits import Budget, limits_from_environment
from pytest_sandbox.image.transaction import Adding, unpack_verified

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_sandbox.image.index import LayerFacts
    from pytest_sandbox.image.size_limits import Limits
    from pytest_sandbox.image.store import Store

__all__ = ["places", "pull"]

_HUB = "docker.io"


def pull(
    text: str, store: Store, progress: Callable[[str, str, int, int], None] | None = None
) -> str:
    """Fetch an image; returns its id. Raises ImageError: the last place's, with what was wrong at
    those before.
    """
    reference = parse_reference(text)
    known = store.index().find(reference)
    if reference.digest and known and store.is_whole(known):
        return known
    limits = limits_from_environment()
    failures: list[ImageError] = []
    found = places(reference)
    with Adding(store) as adding:
        for registry, repository in found:
            try:
                with Registry(registry, limits, adding.stopping) as asked:
                    told = progress or (lambda *_: None)
                    return _Pull(reference, adding, asked, repository, limits, told).run()
            except ImageError as error:
                failures.append(error)
        if len(failures) == 1:
            raise failures[0]
        said = [f"{'/'.join(place)}: {error}" for place, error in zip(found, failures, strict=True)]
        raise ImageError(
            f"{reference} could not be pulled from any of its places. " + " ".join(said)
        )


def places(reference: Reference) -> list[tuple[str, str]]:
    """Return where an image may be fetched from, the preferred place first: registries and
    repositories.
    """
    own = (reference.registry, reference.repository)
    prefix = os.environ.get("PYTEST_SANDBOX_REGISTRY_PREFIX", "").strip().strip("/")
    if prefix and reference.registry == _HUB:
        own = _below(prefix, reference.repository)
    mirrors = []
    for item in filter(
        None, map(str.strip, os.environ.get("PYTEST_SANDBOX_MIRRORS", "").split(","))
    ):
        registry, equals, place = item.partition("=")
        if not equals:
            registry, place = _HUB, item
        if registry == reference.registry:
            mirrors.append(_below(place.strip("/"), reference.repository))
    return [*mirrors, own]


def _below(place: str, repository: str) -> tuple[str, str]:
    host, _, directory = place.removeprefix("https://").removeprefix("http://").partition("/")
    if not REGISTRY.match(host):  # not repeated here: it may hold a name and password
        raise ImageError(
            "PYTEST_SANDBOX_MIRRORS and PYTEST_SANDBOX_REGISTRY_PREFIX name hosts, as in "
            "mirror.example:5000/prefix; logins are docker's"
        )
    return host, f"{directory}/{repository}" if directory else repository


@dataclass
class _Pull:
    """One pull from one place."""

    reference: Reference
    adding: Adding
    registry: Registry
    repository: str
    limits: Limits
    progress: Any

    @property
    def store(self) -> Store:
        return self.adding.store

    def run(self) -> str:
        known = self.store.index().names.get(self.reference.full)
        if known and self.store.is_whole(known) and self._is_current():
            return known
        top, data = self.registry.manifest(self.repository, self.reference.wanted)
        documents = read_image(self._document, top, data, Platform.of_host(), self.limits)
        budget = Budget(self.limits, self.adding.stopping)
        pairs = zip(documents.layers, documents.diff_ids, strict=True)
        self.adding.layers([(one, self._maker(layer, one, budget)) for layer, one in pairs])
        return self.adding.register(
            documents.config,
            documents.diff_ids,
            [self.reference.full],
            manifest=documents.manifest,
            digest=top.digest,
        )

    def _is_current(self) -> bool:
        """Whether the tag still means what is stored: one request without a body, which counts
        towards nobody's rate limit.
        """
        stored = self.store.index().digests.get(self.reference.full)
        return bool(stored) and stored == self.registry.digest_of(
            self.repository, self.reference.wanted
        )

    def _document(self, descriptor: Descriptor) -> bytes:
        stored = self.store.whole_document(descriptor.digest)
        if stored is not None and len(stored) == descriptor.size:
            return stored
        return self.registry.document(self.repository, descriptor)

    def _maker(
        self, descriptor: Descriptor, diff_id: str, budget: Budget
    ) -> Callable[[str], LayerFacts]:
        def make(target: str) -> LayerFacts:
            return unpack_verified(
                self._reported(descriptor),
                target,
                self.limits,
                digest=descriptor.digest,
                size=descriptor.size,
                diff_id=diff_id,
                budget=budget,
            )[1]

        return make

    def _reported(self, descriptor: Descriptor) -> Iterator[bytes]:
        done = 0
        for data in self.registry.blob(self.repository, descriptor):
            yield data
            done += len(data)
            self.progress(descriptor.digest, "downloading", done, descriptor.size)
