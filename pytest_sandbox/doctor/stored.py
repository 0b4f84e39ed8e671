"""An image that is loaded into a store of its own on the image store's file system."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pytest_sandbox import paths
from pytest_sandbox.image.image import Image
from pytest_sandbox.linux import private_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["run_on_image"]

_HOME = "PYTEST_SANDBOX_HOME"
_LAYERS = (("bin/", "etc/", "usr/", "etc/deleted"), ("etc/.wh.deleted",))


def run_on_image(run: Callable[..., None], *, deletes: bool) -> None:
    """Load an image of one layer, or, with ``deletes``, of one more that deletes a file of the
    first; call ``run`` with ``image=`` it.
    """
    with _store() as directory:
        archive = os.path.join(directory, "archive.tar")
        with open(archive, "wb") as file:
            file.write(_archive(_LAYERS if deletes else _LAYERS[:1]))
        run(image=Image.load(archive, name="pytest-sandbox-doctor"))


@contextmanager
def _store() -> Iterator[str]:
    """Have the image store in a new directory below the real one, and remove it afterwards."""
    home, had_store = os.environ.get(_HOME), os.path.isdir(paths.images())
    real = private_directory.make_private(paths.images())
    try:
        with tempfile.TemporaryDirectory(dir=real, prefix="doctor-") as directory:
            os.environ[_HOME] = directory
            yield directory
    finally:
        os.environ.pop(_HOME, None)
        if home is not None:
            os.environ[_HOME] = home
        if not had_store:
            with suppress(OSError):
                os.rmdir(real)


def _archive(layers: tuple[tuple[str, ...], ...]) -> bytes:
    """Return an image as ``docker save`` writes it."""
    contents = [_tar(dict.fromkeys(names, b"")) for names in layers]
    files = {f"{number}/layer.tar": data for number, data in enumerate(contents)}
    digests = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in contents]
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, "")
    rootfs = {"type": "layers", "diff_ids": digests}
    config = {"architecture": machine, "os": "linux", "rootfs": rootfs}
    listing = [{"Config": "config.json", "RepoTags": [], "Layers": list(files)}]
    documents = {"config.json": config, "manifest.json": listing}
    files |= {name: json.dumps(document).encode() for name, document in documents.items()}
    return _tar(files)


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name.rstrip("/"))
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            member.mode, member.size = 0o755, len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
