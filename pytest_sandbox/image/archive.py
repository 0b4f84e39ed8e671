"""Images that lie in a file or a directory: OCI layouts, docker's archives, root file systems; told
apart by what is in them.

A layout or an archive is the same thing behind two doors: members of a directory, and members of a
tar file (read in place, by their offsets).
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol

from pytest_sandbox.errors import ImageError
from pytest_sandbox.image.decompress import Plain, compression_of, decompress, read_chunks
from pytest_sandbox.image.manifest import (
    Descriptor,
    ImageDocuments,
    Platform,
    diff_ids_of,
    parsed,
    read_image,
    synthesised,
)
from pytest_sandbox.image.reference import parse_reference
from pytest_sandbox.image.size_limits import Budget
from pytest_sandbox.image.tar import TarReader
from pytest_sandbox.image.tar_header import BLOCK, printable
from pytest_sandbox.image.transaction import unpack_verified

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_sandbox.image.index import LayerFacts
    from pytest_sandbox.image.size_limits import Limits
    from pytest_sandbox.image.store import Store
    from pytest_sandbox.image.transaction import Adding

__all__ = ["Loader", "full_name", "is_image_directory", "load"]

_LAYOUT: Final = ("oci-layout", "index.json")
_MANIFEST: Final = "manifest.json"
_FULL_NAME: Final = "io.containerd.image.name"
_REF_NAME: Final = "org.opencontainers.image.ref.name"
_MOST_LINKS: Final = 8


class Members(Protocol):
    """Named parts of a layout or an archive."""

    def has(self, name: str) -> bool: ...
    def size(self, name: str) -> int: ...
    def chunks(self, name: str) -> Iterator[bytes]: ...


class DirectoryMembers:
    """The files of a directory; what is not a regular file in there is not read."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def _path(self, name: str) -> str:
        if os.path.isabs(name) or ".." in name.split("/"):
            raise ImageError(f"{name!r} leads out of {self._directory}")
        return os.path.join(self._directory, name)

    def has(self, name: str) -> bool:
        with contextlib.suppress(OSError):
            return stat.S_ISREG(os.stat(self._path(name)).st_mode)
        return False

    def size(self, name: str) -> int:
        return os.stat(self._path(name)).st_size

    def chunks(self, name: str) -> Iterator[bytes]:
        fd = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ImageError(f"{name!r} in {self._directory} is no file")
            yield from read_chunks(file)


class _Seeking:
    """The pieces of a file for a TarReader that skips by seeking."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size

    def read(self, size: int) -> bytes:
        return self._file.read(size)

    def views(self, size: int) -> Iterator[memoryview]:
        while size > 0:
            data = self._file.read(min(size, 1 << 20))
            if not data:
                raise EOFError
            size -= len(data)
            yield memoryview(data)

    def skip(self, size: int) -> None:
        if self._file.seek(size, os.SEEK_CUR) > self._size:
            raise EOFError

    def rest_is_zero(self) -> bool:
        # an archive of members is read by their names: what follows its end is never looked at
        return True


class TarMembers:
    """The files of a plain tar file, found once and read in place.

    Old ``docker save`` writes equal layers as links to the first.
    """

    def __init__(self, path: str, limits: Limits) -> None:
        self._path = path
        self._found: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        with open(path, "rb", buffering=BLOCK * 8) as file:
            for count, member in enumerate(TarReader(_Seeking(file), limits)):
                if count > limits.entries:
                    raise ImageError(f"{path} has more than {limits.entries} entries")
                name = _normal(os.fsdecode(member.name))
                self._links.pop(name, None)
                if member.kind == b"0" and member.sparse is None:
                    self._found[name] = (file.tell(), member.size)
                elif member.kind in b"12":
                    target = os.fsdecode(member.link)
                    self._links[name] = _normal(
                        os.path.join(os.path.dirname(name), target)
                        if member.kind == b"2"
                        else target
                    )

    def _resolved(self, name: str) -> tuple[int, int]:
        at = _normal(name)
        for _ in range(_MOST_LINKS):
            if at not in self._links:
                break
            at = self._links[at]
        if at not in self._found:
            raise ImageError(f"{self._path} has no file {printable(os.fsencode(name))}")
        return self._found[at]

    def has(self, name: str) -> bool:
        with contextlib.suppress(ImageError):
            return bool(self._resolved(name))
        return False

    def size(self, name: str) -> int:
        return self._resolved(name)[1]

    def chunks(self, name: str) -> Iterator[bytes]:
        offset, size = self._resolved(name)
        with open(self._path, "rb") as file:
            file.seek(offset)
            yield from read_chunks(file, size)


def _normal(name: str) -> str:
    return os.path.normpath(name).lstrip("/")


@dataclass(slots=True)
class Loader:
    """One ``load``: from where, into what, and what the images are to be called (instead of the
    names that they bring).
    """

    adding: Adding
    limits: Limits
    platform: Platform
    names: tuple[str, ...] = ()
    progress: Any = field(default=lambda *_: None)
    title: str = ""
    """What messages and the history call the source, where that is not its path."""
    called: dict[str, str] = field(default_factory=dict)
    """A name of each image that was loaded, by its id."""

    def _register(
        self, config: bytes, keys: Sequence[str], names: Sequence[str], manifest: bytes = b""
    ) -> str:
        image_id = self.adding.register(config, keys, names, manifest=manifest)
        self.called[image_id] = names[0] if names else ""
        return image_id

    def layout(self, members: Members) -> list[str]:
        """Load an OCI image layout; returns ids."""
        _check_layout(members, self.limits)
        document = parsed(_read(members, "index.json", self.limits), "index.json")
        listed = document.get("manifests") if isinstance(document, dict) else None
        if not isinstance(listed, list) or not listed or len(listed) > self.limits.index_manifests:
            raise ImageError(
                "index.json has no list of manifests, an empty one, or one of more than "
                f"{self.limits.index_manifests}"
            )
        chosen = [one for one in listed if isinstance(one, dict) and self._fits(one)] or listed[:1]
        return [self._one_of_layout(members, one) for one in chosen]

    def _fits(self, described: dict[str, Any]) -> bool:
        said = described.get("platform")
        return not isinstance(said, dict) or self.platform.takes(said) > 0

    def _one_of_layout(self, members: Members, described: dict[str, Any]) -> str:
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
        budget = Budget(self.limits, self.adding.stopping)
        makers = [
            (diff_id, self._maker(source, diff_id, budget))
            for diff_id, source in zip(documents.diff_ids, sources, strict=True)
        ]
        self.adding.layers(makers)

    def _maker(
        self, source: tuple[Members, str, Descriptor | None], diff_id: str, budget: Budget
    ) -> Callable[[str], LayerFacts]:
        members, path, descriptor = source

        def make(target: str) -> LayerFacts:
            if not members.has(path):
                raise ImageError(f"the layer {diff_id} is missing: there is no file {path!r}")
            raw = self._reported(members.chunks(path), diff_id, members.size(path))
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

    def _reported(self, raw: Iterator[bytes], key: str, total: int) -> Iterator[bytes]:
        done = 0
        for data in raw:
            yield data
            done += len(data)
            self.progress(key, "unpacking", done, total)

    def archive(self, members: Members) -> list[str]:
        """Load what ``docker save`` wrote; returns ids."""
        listed = parsed(_read(members, _MANIFEST, self.limits), _MANIFEST)
        if not isinstance(listed, list) or not listed or len(listed) > self.limits.index_manifests:
            raise ImageError(
                f"{_MANIFEST} is no list of images, an empty one, or one of more than "
                f"{self.limits.index_manifests}"
            )
        return [self._one_of_archive(members, one) for one in listed]

    def _one_of_archive(self, members: Members, listed: Any) -> str:
        layers = listed.get("Layers") if isinstance(listed, dict) else None
        if not isinstance(layers, list) or not all(
            isinstance(one, str) for one in [*layers, listed.get("Config")]
        ):
            raise ImageError(f"{_MANIFEST} does not name a configuration and layers")
        if len(layers) > self.limits.layers:
            raise ImageError(f"{_MANIFEST} names more than {self.limits.layers} layers")
        config = _read(members, listed["Config"], self.limits)
        documents = ImageDocuments(config, b"", (), diff_ids_of(config, len(layers)))
        self._add_layers(documents, [(members, path, None) for path in layers])
        tags = listed.get("RepoTags") or []
        names = self.names or [full_name(tag) for tag in tags if isinstance(tag, str)]
        return self._register(config, documents.diff_ids, names)

    def root_file_system(self, path: str) -> str:
        """Load a tar file of a root file system, compressed or not; returns the id of an image of
        one layer.
        """
        with open(path, "rb") as file:
            raw = self._reported(
                read_chunks(file), os.path.basename(path), os.fstat(file.fileno()).st_size
            )
            key, _facts = self.adding.unknown_layer(
                lambda target: unpack_verified(raw, target, self.limits)
            )
        name = self.title or os.path.basename(path)
        history = [{"created_by": f"pytest-sandbox load {printable(os.fsencode(name))}"}]
        return self._register(synthesised([key], history), [key], self.names)


def load(path: str, store: Store, loader: Loader) -> list[str]:
    """Load what lies at ``path``, whatever it is; returns the ids of the images."""
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
        return [loader.root_file_system(path)]
    with store.workplace() as work:
        return _load_tar(_plain_copy(path, work, label, loader.limits), label, loader)


def _load_members(members: Members, loader: Loader, path: str) -> list[str]:
    if all(map(members.has, _LAYOUT)):
        return loader.layout(members)
    if members.has(_MANIFEST):
        return loader.archive(members)
    raise ImageError(
        f"{path} is neither an OCI layout nor what `docker save` writes. A directory with a root "
        "file system is used as it is."
    )


def _load_tar(plain: str, path: str, loader: Loader) -> list[str]:
    try:
        members = TarMembers(plain, loader.limits)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    if all(map(members.has, _LAYOUT)) or members.has(_MANIFEST):
        return _load_members(members, loader, path)
    return [loader.root_file_system(plain)]


def _holds_an_image(path: str, label: str, limits: Limits) -> bool:
    """Look whether a compressed archive begins as an archive of images does: with blobs, documents
    and directories alone.
    """
    with open(path, "rb") as file:
        try:
            for member in TarReader(decompress(read_chunks(file)), limits):
                name = _normal(os.fsdecode(member.name))
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
            Plain(read_chunks(file), limits) as pieces,
        ):
            copy.writelines(pieces)
    except ImageError as error:
        raise ImageError(f"{label}: {error}") from error
    except OSError as error:
        raise ImageError(f"{label}: {error.strerror} while it was unpacked") from error
    return plain


def _check_layout(members: Members, limits: Limits) -> None:
    document = parsed(_read(members, "oci-layout", limits), "oci-layout")
    version = document.get("imageLayoutVersion") if isinstance(document, dict) else None
    if not isinstance(version, str) or not version.startswith("1."):
        raise ImageError(
            f"the OCI layout is of the unknown version {str(version)[:40]!r}; 1.x is known"
        )


def _read(members: Members, name: str, limits: Limits) -> bytes:
    """Return a document, if it is not larger than a document is."""
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
    """Return the full names that a layout gives an image; a mere tag, as skopeo writes it, is
    none.
    """
    found = annotations if isinstance(annotations, dict) else {}
    for key in (_FULL_NAME, _REF_NAME):
        text = found.get(key)
        if isinstance(text, str) and (key == _FULL_NAME or ":" in text or "/" in text):
            return [full_name(text)]
    return []


def full_name(text: str) -> str:
    """Return the one spelling under which the index keeps a name."""
    return parse_reference(text).full


def is_image_directory(path: str) -> bool:
    """Whether a directory holds an OCI layout or an unpacked ``docker save``, and not a root file
    system.
    """
    members = DirectoryMembers(path)
    return all(map(members.has, _LAYOUT)) or members.has(_MANIFEST)
