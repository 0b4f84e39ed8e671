"""Pulling an image from its registry or a mirror.

``$PYTEST_SANDBOX_MIRRORS`` lists mirrors that are tried first, as
``[REGISTRY=]HOST[:PORT][/PREFIX]``, separated by commas (REGISTRY defaults to docker.io).
``$PYTEST_SANDBOX_REGISTRY_PREFIX``, ``HOST[:PORT][/PREFIX]``, replaces docker.io.
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
from pytest_sandbox.image.transaction import Transaction, unpack_verified

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_sandbox.image.index import LayerInfo
    from pytest_sandbox.image.size_limits import Limits
    from pytest_sandbox.image.store import Store

__all__ = ["pull", "sources"]

_HUB = "docker.io"


def pull(
    text: str, store: Store, progress: Callable[[str, str, int, int], None] | None = None
) -> str:
    """Fetch an image and return its id. Raises ImageError with the errors of all sources."""
    reference = parse_reference(text)
    known = store.index().find(reference)
    if reference.digest and known and store.is_complete(known):
        return known
    limits = limits_from_environment()
    failures: list[ImageError] = []
    found = sources(reference)
    with Transaction(store) as transaction:
        for registry, repository in found:
            try:
                with Registry(registry, limits, transaction.stopping) as asked:
                    told = progress or (lambda *_: None)
                    return _Pull(reference, transaction, asked, repository, limits, told).run()
            except ImageError as error:
                failures.append(error)
        if len(failures) == 1:
            raise failures[0]
        errors = [
            f"{'/'.join(place)}: {error}" for place, error in zip(found, failures, strict=True)
        ]
        raise ImageError(
            f"{reference} could not be pulled from any of its sources. " + " ".join(errors)
        )


def sources(reference: Reference) -> list[tuple[str, str]]:
    """Return the registries and repositories to fetch an image from, in this order."""
    own = (reference.registry, reference.repository)
    prefix = os.environ.get("PYTEST_SANDBOX_REGISTRY_PREFIX", "").strip().strip("/")
    if prefix and reference.registry == _HUB:
        own = _prefixed(prefix, reference.repository)
    mirrors = []
    for item in filter(
        None, map(str.strip, os.environ.get("PYTEST_SANDBOX_MIRRORS", "").split(","))
    ):
        registry, equals, place = item.partition("=")
        if not equals:
            registry, place = _HUB, item
        if registry == reference.registry:
            mirrors.append(_prefixed(place.strip("/"), reference.repository))
    return [*mirrors, own]


def _prefixed(place: str, repository: str) -> tuple[str, str]:
    host, _, directory = place.removeprefix("https://").removeprefix("http://").partition("/")
    if not REGISTRY.match(host):  # not in the message: it may contain a password
        raise ImageError(
            "PYTEST_SANDBOX_MIRRORS and PYTEST_SANDBOX_REGISTRY_PREFIX take hosts, as in "
            "mirror.example:5000/prefix. Credentials are read from docker's configuration"
        )
    return host, f"{directory}/{repository}" if directory else repository


@dataclass
class _Pull:
    """One pull from one source."""

    reference: Reference
    transaction: Transaction
    registry: Registry
    repository: str
    limits: Limits
    progress: Any

    @property
    def store(self) -> Store:
        return self.transaction.store

    def run(self) -> str:
        known = self.store.index().names.get(self.reference.full)
        if known and self.store.is_complete(known) and self._is_current():
            return known
        top, data = self.registry.manifest(self.repository, self.reference.wanted)
        documents = read_image(self._document, top, data, Platform.of_host(), self.limits)
        budget = Budget(self.limits, self.transaction.stopping)
        pairs = zip(documents.layers, documents.diff_ids, strict=True)
        self.transaction.add_layers(
            [(one, self._layer_maker(layer, one, budget)) for layer, one in pairs]
        )
        return self.transaction.register(
            documents.config,
            documents.diff_ids,
            [self.reference.full],
            manifest=documents.manifest,
            digest=top.digest,
        )

    def _is_current(self) -> bool:
        """Tell whether the tag is still that of the stored image, by a HEAD request, which does not
        count towards the rate limit of docker hub.
        """
        stored = self.store.index().digests.get(self.reference.full)
        return bool(stored) and stored == self.registry.digest_of(
            self.repository, self.reference.wanted
        )

    def _document(self, descriptor: Descriptor) -> bytes:
        stored = self.store.find_document(descriptor.digest)
        if stored is not None and len(stored) == descriptor.size:
            return stored
        return self.registry.document(self.repository, descriptor)

    def _layer_maker(
        self, descriptor: Descriptor, diff_id: str, budget: Budget
    ) -> Callable[[str], LayerInfo]:
        def make(target: str) -> LayerInfo:
            return unpack_verified(
                self._with_progress(descriptor),
                target,
                self.limits,
                digest=descriptor.digest,
                size=descriptor.size,
                diff_id=diff_id,
                budget=budget,
            )[1]

        return make

    def _with_progress(self, descriptor: Descriptor) -> Iterator[bytes]:
        done = 0
        for data in self.registry.blob(self.repository, descriptor):
            yield data
            done += len(data)
            self.progress(descriptor.digest, "downloading", done, descriptor.size)
