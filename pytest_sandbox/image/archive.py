"""Loading images from files and directories: OCI layouts, archives of ``docker save`` and root file
systems, which are distinguished by their content.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.errors import ImageError
from pytest_sandbox.image.decompress import PlainStream, compression_of, decompress, read_chunks
from pytest_sandbox.image.manifest import (
    Descriptor,
    ImageDocuments,
    Platform,
    diff_ids_of,
    make_config,
    parse_json,
    read_image,
)
from pytest_sandbox.image.members import DirectoryMembers, TarMembers, normal_name
from pytest_sandbox.image.reference import (
    FULL_NAME_ANNOTATION,
    REF_NAME_ANNOTATION,
    parse_reference,
)
from pytest_sandbox.image.size_limits import Budget
from pytest_sandbox.image.tar import TarReader
from pytest_sandbox.image.tar_header import printable
from pytest_sandbox.image.transaction import unpack_verified

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_sandbox.image.index import LayerInfo
    from pytest_sandbox.image.members import Members
    from pytest_sandbox.image.size_limits import Limits
    from pytest_sandbox.image.store import Store
    from pytest_sandbox.image.transaction import Transaction

__all__ = ["Loader", "full_name", "is_image_directory", "load"]

_LAYOUT: Final = ("oci-layout", "index.json")
_MANIFEST: Final = "manifest.json"


@dataclass(slots=True)
class Loader:
    """One ``load``: its transaction, limits, and ``names`` that replace those in the archive."""

    transaction: Transaction
    limits: Limits
    platform: Platform
    names: tuple[str, ...] = ()
    progress: Any = field(default=lambda *_: None)
    title: str = ""
    """The source's name in messages and in the history; empty for its path."""
    loaded: dict[str, str] = field(default_factory=dict)
    """Maps the id of each loaded image to its first name, or ""."""

    def _register(
        self, config: bytes, keys: Sequence[str], names: Sequence[str], manifest: bytes = b""
    ) -> str:
        image_id = self.transaction.register(config, keys, names, manifest=manifest)
        self.loaded.setdefault(image_id, names[0] if names else "")
        return image_id

    def load_layout(self, members: Members) -> list[str]:
        """Load an OCI image layout and return the ids of its images."""
        _check_layout(members, self.limits)
        document = parse_json(_read(members, "index.json", self.limits), "index.json")
        listed = document.get("manifests") if isinstance(document, dict) else None
        if not isinstance(listed, list) or not listed or len(listed) > self.limits.index_manifests:
            raise ImageError(
                "index.json has no list of manifests, an empty list, or one of more than "
                f"{self.limits.index_manifests}"
            )
        chosen = [one for one in listed if isinstance(one, dict) and self._matches(one)] or listed[
            :1
        ]
        # An image with several names is listed once for each.
        return list(dict.fromkeys(self._load_manifest(members, one) for one in chosen))

    def _matches(self, described: dict[str, Any]) -> bool:
        declared = described.get("platform")
        return not isinstance(declared, dict) or self.platform.rate(declared) > 0

    def _load_manifest(self, members: Members, described: dict[str, Any]) -> str:
        def fetch(descriptor: Descriptor) -> bytes:
            return _verified(members, descriptor, self.limits)

        top = Descriptor.of(described, "a manifest in index.json")
        documents = read_image(fetch, top, fetch(top), self.platform, self.limits)
        sources = [(one, _blob(one.digest)) for one in documents.layers]
        self._add_layers(documents, [(members, path, one) for one, path in sources])
        names = self.names or _names_in(described.get("annotations"))
        return self._register(documents.config, documents.diff_ids, names, documents.manifest)

    def _add_layers(
        self, documents: ImageDocuments, sources: list[tuple[Members, str, Descriptor | None]]
    ) -> None:
        budget = Budget(self.limits, self.transaction.stopping)
        makers = [
            (diff_id, self._layer_maker(source, diff_id, budget))
            for diff_id, source in zip(documents.diff_ids, sources, strict=True)
        ]
        self.transaction.add_layers(makers)

    def _layer_maker(
        self, source: tuple[Members, str, Descriptor | None], diff_id: str, budget: Budget
    ) -> Callable[[str], LayerInfo]:
        members, path, descriptor = source

        def make(target: str) -> LayerInfo:
            if not members.has(path):
                raise ImageError(f"the layer {diff_id} is missing: there is no file {path!r}")
            raw = self._with_progress(members.chunks(path), diff_id, members.size(path))
            digest, size = (descriptor.digest, descriptor.size) if descriptor else ("", None)
            return unpack_verified(
                raw,
                target,
                self.limits,
                digest=digest,
                size=size,
                diff_id=diff_id,
                budget=budget,
            )[1]

        return make

    def _with_progress(self, raw: Iterator[bytes], key: str, total: int) -> Iterator[bytes]:
        done = 0
        for data in raw:
            yield data
            done += len(data)
            self.progress(key, "unpacking", done, total)

    def load_archive(self, members: Members) -> list[str]:
        """Load an archive of ``docker save`` and return the ids of its images."""
        listed = parse_json(_read(members, _MANIFEST, self.limits), _MANIFEST)
        if not isinstance(listed, list) or not listed or len(listed) > self.limits.index_manifests:
            raise ImageError(
                f"{_MANIFEST} is not a list of images, is empty, or has more than "
                f"{self.limits.index_manifests}"
            )
        return [self._load_archived_image(members, one) for one in listed]

    def _load_archived_image(self, members: Members, listed: Any) -> str:
        layers = listed.get("Layers") if isinstance(listed, dict) else None
        if not isinstance(layers, list) or not all(
            isinstance(one, str) for one in [*layers, listed.get("Config")]
        ):
            raise ImageError(f"{_MANIFEST} does not list a configuration and layers")
        if len(layers) > self.limits.layers:
            raise ImageError(f"{_MANIFEST} lists more than {self.limits.layers} layers")
        config = _read(members, listed["Config"], self.limits)
        documents = ImageDocuments(config, b"", (), diff_ids_of(config, len(layers)))
        self._add_layers(documents, [(members, path, None) for path in layers])
        tags = listed.get("RepoTags") or []
        names = self.names or [full_name(tag) for tag in tags if isinstance(tag, str)]
        return self._register(config, documents.diff_ids, names)

    def load_rootfs(self, path: str) -> str:
        """Load the tar file of a root file system, compressed or not, and return the id of an image
        with one layer.
        """
        with open(path, "rb") as file:
            raw = self._with_progress(
                read_chunks(file), os.path.basename(path), os.fstat(file.fileno()).st_size
            )
            key, _read_layer_info = self.transaction.add_layer_by_content(
                lambda target: unpack_verified(raw, target, self.limits)
            )
        name = self.title or os.path.basename(path)
        history = [{"created_by": f"pytest-sandbox load {printable(os.fsencode(name))}"}]
        return self._register(make_config([key], history), [key], self.names)


def load(path: str, store: Store, loader: Loader) -> list[str]:
    """Load the file or directory ``path`` of any kind, and return the ids of its images."""
    label = loader.title or path
    if os.path.isdir(path):
        return _load_members(DirectoryMembers(path), loader, label)
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise ImageError(f"{label}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise ImageError(f"{label} is neither a file nor a directory")
    with open(path, "rb") as file:
        kind = compression_of(file.read(8))
    if not kind:
        return _load_tar(path, label, loader)
    if not _holds_an_image(path, label, loader.limits):
        return [loader.load_rootfs(path)]
    with store.temporary_directory() as work:
        return _load_tar(_plain_copy(path, work, label, loader.limits), label, loader)


def _load_members(members: Members, loader: Loader, path: str) -> list[str]:
    if all(map(members.has, _LAYOUT)):
        return loader.load_layout(members)
    if members.has(_MANIFEST):
        return loader.load_archive(members)
    raise ImageError(
        f"{path} is neither an OCI layout nor an archive of `docker save`. A directory with a root "
        "file system is not loaded: use its path as the image."
    )


def _load_tar(plain: str, path: str, loader: Loader) -> list[str]:
    try:
        members = TarMembers(plain, loader.limits)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    if not members.is_rootfs and (all(map(members.has, _LAYOUT)) or members.has(_MANIFEST)):
        return _load_members(members, loader, path)
    return [loader.load_rootfs(plain)]


def _holds_an_image(path: str, label: str, limits: Limits) -> bool:
    """Tell whether a compressed archive starts like an archive of images, with blobs, documents and
    directories only.
    """
    with open(path, "rb") as file:
        try:
            for member in TarReader(decompress(read_chunks(file)), limits):
                name = normal_name(os.fsdecode(member.name))
                if name in (*_LAYOUT, _MANIFEST) or name.startswith("blobs/sha256/"):
                    return True
                if member.kind == b"0":
                    return (
                        name.endswith((".json", "/json", "/layer.tar", "/VERSION", "repositories"))
                        and "/" not in name.rpartition("/")[0]
                    )
        except ImageError as error:
            raise ImageError(f"{label}: {error}") from error
    return False


def _plain_copy(path: str, work: str, label: str, limits: Limits) -> str:
    plain = os.path.join(work, os.path.basename(path))
    try:
        with (
            open(path, "rb") as file,
            open(plain, "xb") as copy,
            PlainStream(read_chunks(file), limits) as pieces,
        ):
            copy.writelines(pieces)
    except ImageError as error:
        raise ImageError(f"{label}: {error}") from error
    except OSError as error:
        raise ImageError(f"{label}: {error.strerror} while it was decompressed") from error
    return plain


def _check_layout(members: Members, limits: Limits) -> None:
    document = parse_json(_read(members, "oci-layout", limits), "oci-layout")
    version = document.get("imageLayoutVersion") if isinstance(document, dict) else None
    if not isinstance(version, str) or not version.startswith("1."):
        raise ImageError(
            f"the OCI layout has the unknown version {str(version)[:40]!r}; 1.x is supported"
        )


def _read(members: Members, name: str, limits: Limits) -> bytes:
    """Return a document. Raises ImageError if it is missing or too large."""
    if not members.has(name):
        raise ImageError(f"the file {name!r} is missing")
    data = b""
    for part in members.chunks(name):
        data += part
        if len(data) > limits.document_bytes:
            raise ImageError(f"the document {name!r} is larger than {limits.document_bytes} bytes")
    return data


def _verified(members: Members, descriptor: Descriptor, limits: Limits) -> bytes:
    import hashlib

    data = _read(members, _blob(descriptor.digest), limits)
    found = f"sha256:{hashlib.sha256(data).hexdigest()}"
    if (found, len(data)) != (descriptor.digest, descriptor.size):
        raise ImageError(
            f"the document {descriptor.digest} is {found} of {len(data)} bytes, not of "
            f"{descriptor.size}: it was damaged or forged."
        )
    return data


def _blob(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _names_in(annotations: Any) -> list[str]:
    """Return the full name of an image in a layout's annotations, if there is one. A tag alone, as
    skopeo writes it, is not a name.
    """
    found = annotations if isinstance(annotations, dict) else {}
    for key in (FULL_NAME_ANNOTATION, REF_NAME_ANNOTATION):
        text = found.get(key)
        if isinstance(text, str) and (key == FULL_NAME_ANNOTATION or ":" in text or "/" in text):
            return [full_name(text)]
    return []


def full_name(text: str) -> str:
    """Return the canonical form of a name, which the index uses."""
    return parse_reference(text).full


def is_image_directory(path: str) -> bool:
    """Tell whether a directory is an OCI layout or an unpacked archive of ``docker save``, rather
    than a root file system.
    """
    members = DirectoryMembers(path)
    return all(map(members.has, _LAYOUT)) or members.has(_MANIFEST)
