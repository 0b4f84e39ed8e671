"""Write images of the store to one archive, which is an OCI layout and an archive of ``docker
save`` at the same time, as docker writes it since version 25.

The store has the files of layers, not their original archives: each layer is packed again. So a
saved image has other layer digests than the one that was pulled, and another id; saving what was
loaded from such an archive gives the same ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import tarfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from pytest_sandbox.errors import ImageError
from pytest_sandbox.image.pack import END, TreePacker, header, padding
from pytest_sandbox.image.reference import (
    FULL_NAME_ANNOTATION,
    REF_NAME_ANNOTATION,
    parse_reference,
)
from pytest_sandbox.linux.directories import OpenDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_sandbox.image.store import Store

__all__ = ["Saved", "open_archive", "save"]

_OCI: Final = "application/vnd.oci.image"
_COPIED: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Saved:
    """One image to save: its id, the keys of its layers, its configuration, its name, and what is
    below its layers ("host", or a directory), if that is not in the store.
    """

    id: str
    layers: tuple[str, ...]
    document: dict[str, Any]
    name: str = ""
    base: str = ""


@dataclass(slots=True)
class _Blob:
    """A blob of the archive: its digest and size, and its content or the file that has it."""

    digest: str
    size: int
    data: bytes = b""
    path: str = ""

    @property
    def name(self) -> str:
        return f"blobs/sha256/{self.digest.removeprefix('sha256:')}"

    def described(self, media_type: str) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": self.digest, "size": self.size}


def save(store: Store, images: Sequence[Saved], target: BinaryIO) -> None:
    """Write images to ``target``; one that is given by several names is written once.

    The layers are packed into files of the store first, so it needs room for them. Raises
    :class:`ImageError` and OSError.
    """
    with contextlib.ExitStack() as held:
        names: dict[str, list[str]] = {}
        for image in images:
            _refuse_base(image)
            held.callback(os.close, store.hold(image.id))
            named = names.setdefault(image.id, [])
            named += [image.name] if image.name and image.name not in named else []
        archive = _Archive(store, held.enter_context(store.temporary_directory()))
        for image_id, named in names.items():
            archive.add(next(one for one in images if one.id == image_id), named)
        archive.write(target)


@contextlib.contextmanager
def open_archive(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file to write, which gets its name when the block ends without an error.

    Raises :class:`ImageError`.
    """
    target = os.path.abspath(os.fspath(path))
    written = f"{target}.{secrets.token_hex(4)}"
    try:
        file = open(written, "xb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise ImageError(f"{target}: {error.strerror}") from error
    try:
        with file:
            yield file
        os.replace(written, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(written)
        if isinstance(error, OSError):
            raise ImageError(f"{target}: {error.strerror}") from error
        raise


@dataclass(slots=True)
class _Archive:
    """The blobs of an archive, and its lists of images."""

    store: Store
    work: str
    blobs: dict[str, _Blob] = field(default_factory=dict)
    packed: dict[str, _Blob] = field(default_factory=dict)
    manifests: list[dict[str, Any]] = field(default_factory=list)
    listed: list[dict[str, Any]] = field(default_factory=list)

    def add(self, image: Saved, names: list[str]) -> None:
        """Add one image."""
        layers = [self._layer(key) for key in image.layers]
        document = {
            **image.document,
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        }
        config = self._document(document)
        manifest = self._document(
            {
                "schemaVersion": 2,
                "mediaType": f"{_OCI}.manifest.v1+json",
                "config": config.described(f"{_OCI}.config.v1+json"),
                "layers": [layer.described(f"{_OCI}.layer.v1.tar") for layer in layers],
            }
        )
        described = manifest.described(f"{_OCI}.manifest.v1+json")
        self.manifests += [{**described, "annotations": _annotations(name)} for name in names] or [
            described
        ]
        self.listed.append(
            {
                "Config": config.name,
                "RepoTags": [str(parse_reference(name)) for name in names] or None,
                "Layers": [layer.name for layer in layers],
            }
        )

    def _document(self, content: object) -> _Blob:
        data = _json(content)
        blob = _Blob(f"sha256:{hashlib.sha256(data).hexdigest()}", len(data), data)
        return self.blobs.setdefault(blob.digest, blob)

    def _layer(self, key: str) -> _Blob:
        if key not in self.packed:
            blob = self._pack(key)
            self.packed[key] = self.blobs.setdefault(blob.digest, blob)
        return self.packed[key]

    def _pack(self, key: str) -> _Blob:
        """Pack the layer of a key into a file."""
        path = os.path.join(self.work, key.removeprefix("sha256:"))
        info = self.store.layer_info(key)
        digest, size = hashlib.sha256(), 0
        with open(path, "xb", buffering=_COPIED) as file:

            def write(data: bytes) -> None:
                nonlocal size
                digest.update(data)
                size += file.write(data)

            packer = TreePacker(write, is_layer=True, implied=frozenset(info.implied))
            with OpenDirectory(self.store.layer_path(key)) as root:
                packer.pack(root)
            if info.opaque_root:
                write(header(tarfile.TarInfo(".wh..wh..opq")))
            write(END)
        return _Blob(f"sha256:{digest.hexdigest()}", size, path=path)

    def write(self, target: BinaryIO) -> None:
        """Write the archive, in an order that readers of streams can use."""
        _write(target, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _write(
            target,
            "index.json",
            _json(
                {
                    "schemaVersion": 2,
                    "mediaType": f"{_OCI}.index.v1+json",
                    "manifests": self.manifests,
                }
            ),
        )
        _write(target, "manifest.json", _json(self.listed))
        for blob in self.blobs.values():
            if not blob.path:
                _write(target, blob.name, blob.data)
                continue
            target.write(_file_header(blob.name, blob.size))
            with open(blob.path, "rb") as file:
                shutil.copyfileobj(file, target, _COPIED)
            target.write(padding(blob.size))
        target.write(END)
        target.flush()


def _json(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":"), sort_keys=True).encode()


def _file_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return header(info)


def _write(target: BinaryIO, name: str, data: bytes) -> None:
    target.write(_file_header(name, len(data)) + data + padding(len(data)))


def _annotations(name: str) -> dict[str, str]:
    """Return the annotations from which readers of layouts take the name of an image."""
    parsed = parse_reference(name)
    return {
        FULL_NAME_ANNOTATION: parsed.full,
        REF_NAME_ANNOTATION: str(parsed).rpartition(":")[2],
    }


def _refuse_base(image: Saved) -> None:
    """Raise :class:`ImageError` for an image whose lowest layer is not in the store."""
    if image.base:
        is_host = image.base == "host"
        what = "the host's root file system" if is_host else f"the directory {image.base}"
        raise ImageError(
            f"{image.name or image.id} consists of changes to {what}, which is not stored: it "
            "cannot be saved. Commit a container of an image instead."
        )
