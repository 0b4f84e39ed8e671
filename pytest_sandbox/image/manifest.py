"""The JSON documents of an image: descriptors, manifests, indexes and configurations. They are
untrusted, and are validated.

Formats: OCI image spec 1.1 (descriptor.md, manifest.md, image-index.md, config.md) and docker's
image manifest version 2, schema 2.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import ImageError
from pytest_sandbox.image.reference import DIGEST
from pytest_sandbox.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pytest_sandbox.image.size_limits import Limits

__all__ = [
    "INDEX_TYPES",
    "MANIFEST_TYPES",
    "Descriptor",
    "ImageDocuments",
    "Platform",
    "make_config",
    "read_image",
]

_DOCKER: Final = "application/vnd.docker."
_OCI: Final = "application/vnd.oci.image."
MANIFEST_TYPES: Final = (f"{_OCI}manifest.v1+json", f"{_DOCKER}distribution.manifest.v2+json")
INDEX_TYPES: Final = (f"{_OCI}index.v1+json", f"{_DOCKER}distribution.manifest.list.v2+json")
_LAYER: Final = re.compile(
    r"application/vnd\."
    r"(oci\.image\.layer(\.nondistributable)?\.v1\.tar(\+gzip|\+zstd)?"
    r"|docker\.image\.rootfs\.(diff|foreign\.diff)\.tar(\.gzip|\.zstd)?)\Z"
)
_MACHINES: Final = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "i686": ("386", ""),
    "ppc64le": ("ppc64le", ""),
}
_LARGEST: Final = 1 << 50
_HIGHEST_ID: Final = (1 << 31) - 1  # docker's limit
_LONGEST_USER: Final = 256


@dataclass(frozen=True, slots=True)
class Platform:
    """A platform in docker's notation, by which a manifest is chosen from an index: linux/amd64,
    linux/arm64/v8.
    """

    os: str = "linux"
    architecture: str = ""
    variant: str = ""

    @classmethod
    def of_host(cls) -> Platform:
        machine = os.uname().machine
        return cls("linux", *_MACHINES.get(machine, (machine, "")))

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    def rate(self, other: dict[str, Any]) -> int:
        """Return how well a descriptor's platform matches: 0 for not at all, 3 for exactly."""
        if (other.get("os"), other.get("architecture")) != (self.os, self.architecture):
            return 0
        variant = other.get("variant", "")
        return 3 if variant == self.variant else 2 if not variant else 1 if not self.variant else 0


@dataclass(frozen=True, slots=True)
class Descriptor:
    """The digest, size in bytes and media type of a blob."""

    media_type: str
    digest: str
    size: int

    @classmethod
    def of(cls, data: Any, what: str) -> Descriptor:
        """Validate a descriptor, which error messages call ``what``. Raises ImageError."""
        if not isinstance(data, dict):
            raise ImageError(f"the descriptor of {what} is not an object")
        media, digest, size = data.get("mediaType", ""), data.get("digest"), data.get("size")
        if not isinstance(digest, str) or not DIGEST.match(digest):
            raise ImageError(f"{what} has an invalid sha256 digest, {str(digest)[:80]!r}")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _LARGEST:
            raise ImageError(f"{what} ({digest}) has an invalid size, {str(size)[:80]!r}")
        return cls(media if isinstance(media, str) else "", digest, size)


@dataclass(frozen=True, slots=True)
class ImageDocuments:
    """The verified documents of one image: the bytes of ``config`` and ``manifest``, and the
    descriptors and diff_ids of its layers, bottom first.
    """

    config: bytes
    manifest: bytes
    layers: tuple[Descriptor, ...]
    diff_ids: tuple[str, ...]


def read_image(
    fetch: Callable[[Descriptor], bytes],
    top: Descriptor,
    data: bytes,
    platform: Platform,
    limits: Limits,
) -> ImageDocuments:
    """Return the image for this platform of the manifest or index ``data``, whose descriptor is
    ``top``.

    ``fetch`` returns the verified bytes of a document. Raises ImageError for documents that are
    cyclic, nested too deep, of an unknown type, or inconsistent.
    """
    for _ in range(limits.index_depth):
        document = _object(data, f"the manifest {top.digest}")
        if not _is_index(top, document):
            return _image(fetch, top, data, document, limits)
        top = _chosen(document, top, platform, limits)
        data = fetch(top)
    raise ImageError(f"the index is nested more than {limits.index_depth} deep, or contains itself")


def _is_index(top: Descriptor, document: dict[str, Any]) -> bool:
    media = document.get("mediaType") or top.media_type
    if document.get("schemaVersion") == 1 or "fsLayers" in document:
        raise ImageError(
            "this image uses docker's manifest schema 1, which is obsolete since 2017. "
            "Push it again with a newer docker."
        )
    if "manifests" in document and "layers" in document:
        raise ImageError(f"{top.digest} is both a manifest and an index")
    if media in INDEX_TYPES or (not media and "manifests" in document):
        return True
    if media in MANIFEST_TYPES or (not media and "layers" in document):
        return False
    raise ImageError(
        f"{top.digest} has the unknown media type {str(media)[:80]!r}; known are "
        f"{', '.join(MANIFEST_TYPES + INDEX_TYPES)}"
    )


def _chosen(
    document: dict[str, Any], top: Descriptor, platform: Platform, limits: Limits
) -> Descriptor:
    listed = document.get("manifests")
    if not isinstance(listed, list) or len(listed) > limits.index_manifests:
        raise ImageError(
            f"the index {top.digest} has no list of manifests, or one of more than "
            f"{limits.index_manifests}"
        )
    rated = [(_rate(one, platform), -at) for at, one in enumerate(listed)]
    best, at = max(rated, default=(0, 0))
    if best <= 0:
        offered = sorted({_platform_text(one) for one in listed if isinstance(one, dict)})
        raise ImageError(
            f"the image is not available for {platform}; it is for "
            f"{', '.join(offered)[:500] or 'no platform'}."
        )
    return Descriptor.of(listed[-at], f"a manifest of the index {top.digest}")


def _rate(one: Any, platform: Platform) -> int:
    if not isinstance(one, dict):
        return 0
    declared = one.get("platform")
    return platform.rate(declared) if isinstance(declared, dict) else 1


def _platform_text(one: dict[str, Any]) -> str:
    declared = one.get("platform")
    if not isinstance(declared, dict):
        return "any"
    parts = (declared.get(key) for key in ("os", "architecture", "variant"))
    return "/".join(printable(str(part)[:40]) for part in parts if part)


def _image(
    fetch: Callable[[Descriptor], bytes],
    top: Descriptor,
    data: bytes,
    document: dict[str, Any],
    limits: Limits,
) -> ImageDocuments:
    described = document.get("layers")
    if not isinstance(described, list) or len(described) > limits.layers:
        raise ImageError(
            f"the manifest {top.digest} has no list of layers, or one of more than {limits.layers}"
        )
    layers = tuple(
        Descriptor.of(one, f"layer {number} of the manifest {top.digest}")
        for number, one in enumerate(described, 1)
    )
    for layer in layers:
        if layer.media_type and not _LAYER.match(layer.media_type):
            raise ImageError(
                f"the layer {layer.digest} has the unknown media type {layer.media_type[:80]!r}"
            )
    config = fetch(
        Descriptor.of(document.get("config"), f"the configuration of the manifest {top.digest}")
    )
    return ImageDocuments(config, data, layers, diff_ids_of(config, len(layers)))


def diff_ids_of(config: bytes, count: int) -> tuple[str, ...]:
    """Return the digests of the plain layers. Raises ImageError unless there are ``count``."""
    document = _object(config, "the image's configuration")
    rootfs = document.get("rootfs")
    found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(found, list) or not all(
        isinstance(one, str) and DIGEST.match(one) for one in found
    ):
        raise ImageError(
            "the image's configuration has no list of diff_ids: it is not a container image"
        )
    if len(found) != count:
        raise ImageError(
            f"the image's configuration names {len(found)} layers, its manifest {count}"
        )
    if document.get("os") not in ("linux", "", None):
        system = printable(str(document["os"])[:40])
        raise ImageError(f"this is an image for {system}, not for linux")
    _check_parts(document)
    return tuple(found)


def _check_parts(document: dict[str, Any]) -> None:
    """Raise ImageError unless the parts that containers use have the types of the spec."""
    history = document.get("history")
    if history is not None and not (
        isinstance(history, list) and all(isinstance(one, dict) for one in history)
    ):
        raise ImageError("the image's history is not a list of objects")
    config = document.get("config")
    if config is None:
        return
    if not isinstance(config, dict):
        raise ImageError("the image's config is not an object")
    for key in ("Env", "Entrypoint", "Cmd"):
        _check_texts(config.get(key), f"config.{key}")
    for key in ("User", "WorkingDir", "StopSignal"):
        _check_texts([config.get(key) or ""], f"config.{key}")
    _check_user(config.get("User") or "")
    for key in ("Volumes", "Labels", "ExposedPorts"):
        if not isinstance(config.get(key) or {}, dict):
            raise ImageError(f"the image's config.{key} is not an object")


def _check_user(user: str) -> None:
    """Raise ImageError for a UID or GID out of range: for setuid(2), 4294967295 is "unchanged"."""
    parts = user.split(":")
    if any(part.isdecimal() and int(part) > _HIGHEST_ID for part in parts if len(part) < 100):
        raise ImageError(
            f"the image's config.User {user!r} is out of range; UIDs and GIDs are 0 to "
            f"{_HIGHEST_ID}"
        )
    if len(parts) > 2 or not user.isprintable() or len(user) > _LONGEST_USER:
        raise ImageError(
            f"the image's config.User {printable(user[:80])!r} is not USER or USER:GROUP"
        )


def _check_texts(value: Any, what: str) -> None:
    if value is None:
        return
    if not isinstance(value, list) or not all(
        isinstance(one, str) and "\0" not in one for one in value
    ):
        raise ImageError(f"the image's {what} is not a list of strings")


def _object(data: bytes, what: str) -> dict[str, Any]:
    document = parse_json(data, what)
    if not isinstance(document, dict):
        raise ImageError(f"{what} is not a JSON object")
    return document


def parse_json(data: bytes, what: str) -> Any:
    """Parse JSON. Raises ImageError, also for lone surrogates, which cannot be printed."""
    try:
        document = json.loads(data)
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ImageError(f"{what} contains text that is not valid Unicode") from None
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{what} is not JSON: {printable(str(error)[:200])}") from None
    return document


def make_config(
    diff_ids: Iterable[str], history: list[dict[str, Any]], config: dict[str, Any] | None = None
) -> bytes:
    """Return a new configuration. Equal arguments give the same bytes, and so the same id."""
    platform = Platform.of_host()
    document = {
        "architecture": platform.architecture,
        "os": platform.os,
        "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "history": history,
    }
    return json.dumps(document, sort_keys=True).encode()
