"""Layers and images in memory, valid or invalid."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

TYPES = {
    "file": tarfile.REGTYPE,
    "directory": tarfile.DIRTYPE,
    "link": tarfile.SYMTYPE,
    "hard": tarfile.LNKTYPE,
    "char": tarfile.CHRTYPE,
    "block": tarfile.BLKTYPE,
    "fifo": tarfile.FIFOTYPE,
}


def entry(
    name: str,
    data: bytes = b"",
    *,
    kind: str | bytes = "file",
    tar_format: int = tarfile.PAX_FORMAT,
    **more: Any,
) -> bytes:
    """Return an entry of a tar file: header, content and padding. *more* are attributes of
    tarfile.TarInfo (mode, uid, linkname, pax_headers, ...).
    """
    info = tarfile.TarInfo(name)
    info.type = TYPES.get(kind, kind) if isinstance(kind, str) else kind
    info.size = len(data)
    info.mode = 0o755 if kind == "directory" else 0o644
    for key, value in more.items():
        setattr(info, key, value)
    return info.tobuf(tar_format, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512)


def directory(name: str, **more: Any) -> bytes:
    return entry(name, kind="directory", **more)


def link(name: str, target: str, *, kind: str = "link", **more: Any) -> bytes:
    return entry(name, kind=kind, linkname=target, **more)


def layer(*entries: bytes) -> bytes:
    """Return an uncompressed tar file of these entries."""
    return b"".join(entries) + bytes(1024)


def files(**contents: str) -> bytes:
    """Return a layer of text files in its root."""
    return layer(*(entry(name, text.encode()) for name, text in contents.items()))


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


OCI = "application/vnd.oci.image"
DOCKER = "application/vnd.docker.distribution"


def _gzipped(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


@dataclass
class Made:
    """An image as documents, and blobs by digest, which a test can change before :meth:`write`."""

    layers: list[bytes]
    config: dict[str, Any] = field(default_factory=dict)
    media: str = f"{OCI}.layer.v1.tar+gzip"
    compress: Any = _gzipped
    reference: str | None = None
    blobs: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.document = {
            "architecture": "amd64",
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": [digest_of(data) for data in self.layers]},
            "history": [
                {"created": "2026-01-02T03:04:05Z", "created_by": f"step {n}"}
                for n in range(len(self.layers))
            ],
        }
        self.manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": self.add(json.dumps(self.document).encode(), f"{OCI}.config.v1+json"),
            "layers": [self.add(self.compress(data), self.media) for data in self.layers],
        }

    def add(self, data: bytes, media: str) -> dict[str, Any]:
        """Add a blob and return its descriptor."""
        self.blobs[digest_of(data)] = data
        return {"mediaType": media, "digest": digest_of(data), "size": len(data)}

    def reseal(self) -> None:
        """Update the configuration's digest in the manifest."""
        self.manifest["config"] = self.add(
            json.dumps(self.document).encode(), f"{OCI}.config.v1+json"
        )

    def descriptor(self) -> dict[str, Any]:
        return self.add(json.dumps(self.manifest).encode(), str(self.manifest["mediaType"]))

    def index(self) -> dict[str, Any]:
        described = self.descriptor()
        if self.reference:
            described["annotations"] = {"org.opencontainers.image.ref.name": self.reference}
        return {"schemaVersion": 2, "manifests": [described]}

    def write(self, where: Path) -> Path:
        """Write an OCI layout into the directory *where*."""
        index = self.index()
        (where / "blobs/sha256").mkdir(parents=True)
        (where / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        (where / "index.json").write_text(json.dumps(index))
        for digest, data in self.blobs.items():
            (where / "blobs/sha256" / digest.removeprefix("sha256:")).write_bytes(data)
        return where


def docker_archive(made: Made, *tags: str) -> bytes:
    """Return the image as ``docker save`` before version 25 wrote it, with a manifest.json."""
    config = json.dumps(made.document).encode()
    names = [f"{digest_of(data).removeprefix('sha256:')}/layer.tar" for data in made.layers]
    listing = [
        {
            "Config": f"{digest_of(config).removeprefix('sha256:')}.json",
            "RepoTags": list(tags),
            "Layers": names,
        }
    ]
    entries = [entry(name, data) for name, data in zip(names, made.layers, strict=True)]
    return layer(
        entry(listing[0]["Config"], config),
        *entries,
        entry("manifest.json", json.dumps(listing).encode()),
    )


def tar_of(where: Path) -> bytes:
    """Return a directory as an uncompressed tar file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(where, arcname=".")
    return buffer.getvalue()
