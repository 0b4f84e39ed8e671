"""References as docker reads them: ``debian``, ``debian:12``, ``localhost:5000/x``,
``registry.example/a/b@sha256:...``.

The grammar is that of github.com/distribution/reference; the defaults (docker.io, library/, latest)
are docker's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pytest_sandbox.errors import ImageError

__all__ = ["DIGEST", "REGISTRY", "Reference", "parse_reference"]

DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")

_DEFAULT_REGISTRY = "docker.io"
_DEFAULT_TAG = "latest"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_LABEL = r"(?:[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-]*[A-Za-z0-9])"
REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{{1,5}})?\Z")
_LONGEST_NAME = 255
_LIKE_A_DIGEST = re.compile(r"[a-z0-9+._-]+:[0-9a-fA-F]{16,}\Z|sha")


@dataclass(frozen=True, slots=True)
class Reference:
    """One image's name: ``registry`` and ``repository``, and a ``tag`` or a ``digest`` (a digest
    makes the tag meaningless, and drops it).
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
        """What to ask a registry for: the digest, or else the tag."""
        return self.digest or self.tag

    @property
    def full(self) -> str:
        """The one unambiguous spelling: ``docker.io/library/debian:12``."""
        return f"{self.registry}/{self.repository}" + (
            f"@{self.digest}" if self.digest else f":{self.tag}"
        )

    def __str__(self) -> str:
        """The short form that docker prints, always with its tag or digest: ``debian:12``."""
        return (
            f"{self.familiar_name}@{self.digest}"
            if self.digest
            else f"{self.familiar_name}:{self.tag}"
        )


def parse_reference(text: str) -> Reference:
    """Read ``text`` as docker does; raises ImageError that says which part is wrong."""
    name, at, digest = text.partition("@")
    if at and not DIGEST.match(digest):
        raise _wrong(text, "the digest must be sha256: and 64 lower-case hexadecimal digits")
    name, tag = _split_tag(name)
    registry, repository = _split_registry(name)
    if not REGISTRY.match(registry):
        raise _wrong(text, f"{registry!r} is no registry (a host name, or host:port)")
    if not _REPOSITORY.match(repository):
        raise _wrong(text, "a name is made of lower-case letters, digits, '.', '_', '-' and '/'")
    if len(registry) + len(repository) > _LONGEST_NAME:
        raise _wrong(text[:80], f"the name is longer than {_LONGEST_NAME} characters")
    if tag is not None and not _TAG.match(tag):
        raise _wrong(text, "a tag is at most 128 letters, digits, '_', '.' and '-'")
    return Reference(registry, repository, "" if digest else (tag or _DEFAULT_TAG), digest)


def _split_tag(name: str) -> tuple[str, str | None]:
    before, colon, after = name.rpartition(":")
    if not colon or "/" in after:  # a colon before a slash belongs to the registry's port
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


def _wrong(text: str, why: str) -> ImageError:
    before, at, after = text.rpartition("@")
    if at and not _LIKE_A_DIGEST.match(after):  # USER:PASSWORD@HOST, as in an address
        text = f"***@{after}" if ":" in before.partition("/")[0] else text
    return ImageError(
        f"{text!r} is not an image reference: {why}. Write it as docker does, for example "
        "debian:12 or registry.example/a/b:tag."
    )
