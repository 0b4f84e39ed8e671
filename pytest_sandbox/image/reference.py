"""Image references in docker's syntax: ``debian``, ``debian:12``, ``localhost:5000/x``,
``registry.example/a/b@sha256:...``.

The grammar is that of github.com/distribution/reference; the defaults (docker.io, library/, latest)
are docker's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pytest_sandbox.errors import ImageError

__all__ = [
    "DIGEST",
    "FULL_NAME_ANNOTATION",
    "REF_NAME_ANNOTATION",
    "REGISTRY",
    "Reference",
    "parse_reference",
]

#: Annotations of a manifest in an OCI layout that name the image: whole, and often its tag alone.
FULL_NAME_ANNOTATION = "io.containerd.image.name"
REF_NAME_ANNOTATION = "org.opencontainers.image.ref.name"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")

_DEFAULT_REGISTRY = "docker.io"
_DEFAULT_TAG = "latest"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_LABEL = r"(?:[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-]*[A-Za-z0-9])"
REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{{1,5}})?\Z")
_LONGEST_NAME = 255  # as in distribution/reference
_LIKE_A_DIGEST = re.compile(r"[a-z0-9+._-]+:[0-9a-fA-F]{16,}\Z|sha")


@dataclass(frozen=True, slots=True)
class Reference:
    """The name of an image: ``registry``, ``repository``, and a ``tag`` or a ``digest``. With a
    digest, the tag is dropped.
    """

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def familiar_name(self) -> str:
        """The name without tag and digest, as ``docker images`` prints it: ``debian``,
        ``localhost:5000/x``.
        """
        if self.registry != _DEFAULT_REGISTRY:
            return f"{self.registry}/{self.repository}"
        return self.repository.removeprefix("library/")

    @property
    def wanted(self) -> str:
        """The digest, or else the tag, to request from a registry."""
        return self.digest or self.tag

    @property
    def full(self) -> str:
        """The canonical form: ``docker.io/library/debian:12``."""
        return f"{self.registry}/{self.repository}" + (
            f"@{self.digest}" if self.digest else f":{self.tag}"
        )

    def __str__(self) -> str:
        """The short form that docker prints, with its tag or digest: ``debian:12``."""
        return (
            f"{self.familiar_name}@{self.digest}"
            if self.digest
            else f"{self.familiar_name}:{self.tag}"
        )


def parse_reference(text: str) -> Reference:
    """Parse ``text`` as docker does. Raises ImageError that names the invalid part."""
    name, at, digest = text.partition("@")
    if at and not DIGEST.match(digest):
        raise _invalid(text, "the digest must be sha256: and 64 lower-case hexadecimal digits")
    name, tag = _split_tag(name)
    registry, repository = _split_registry(name)
    if not REGISTRY.match(registry):
        raise _invalid(text, f"{registry!r} is not a registry (a host name, or host:port)")
    if not _REPOSITORY.match(repository):
        raise _invalid(text, "a name consists of lower-case letters, digits, '.', '_', '-' and '/'")
    if len(registry) + len(repository) > _LONGEST_NAME:
        raise _invalid(text[:80], f"the name is longer than {_LONGEST_NAME} characters")
    if tag is not None and not _TAG.match(tag):
        raise _invalid(text, "a tag consists of at most 128 letters, digits, '_', '.' and '-'")
    return Reference(registry, repository, "" if digest else (tag or _DEFAULT_TAG), digest)


def _split_tag(name: str) -> tuple[str, str | None]:
    before, colon, after = name.rpartition(":")
    if not colon or "/" in after:  # a colon before a slash precedes the registry's port
        return name, None
    return before, after


def _split_registry(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        registry = (
            _DEFAULT_REGISTRY if first in ("index.docker.io", "registry-1.docker.io") else first
        )
    else:
        registry, rest = _DEFAULT_REGISTRY, name
    if registry == _DEFAULT_REGISTRY and "/" not in rest:
        rest = f"library/{rest}"
    return registry, rest


def _invalid(text: str, why: str) -> ImageError:
    before, at, after = text.rpartition("@")
    if at and not _LIKE_A_DIGEST.match(after):  # USER:PASSWORD@HOST, as in a URL
        text = f"***@{after}" if ":" in before.partition("/")[0] else text
    return ImageError(
        f"{text!r} is not an image reference: {why}. Write it as docker does, for example "
        "debian:12 or registry.example/a/b:tag."
    )
