"""Copy files out of a container as a tar stream, and into it from one: ``docker cp`` with ``-``."""

from __future__ import annotations

import os
import stat
import tempfile
from typing import TYPE_CHECKING, BinaryIO

from pytest_sandbox.container.files import open_inside
from pytest_sandbox.container.transfer import copy_in
from pytest_sandbox.image.decompress import PlainStream, read_chunks
from pytest_sandbox.image.extract import unpack
from pytest_sandbox.image.pack import END, TreePacker
from pytest_sandbox.image.size_limits import limits_from_environment
from pytest_sandbox.linux import process

if TYPE_CHECKING:
    from pytest_sandbox.container.handle import Handle

__all__ = ["extract_archive", "write_archive"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def write_archive(handle: Handle, source: str, target: BinaryIO) -> None:
    """Write a file or a directory inside as a tar stream, with its owners; ``DIRECTORY/.`` is the
    content of a directory. Raises OSError.
    """
    name = "" if source.endswith("/.") else os.path.basename(os.path.normpath(source))
    entry = open_inside(handle, source, os.O_PATH)
    try:
        status = os.fstat(entry)
        packer = TreePacker(target.write)
        if stat.S_ISDIR(status.st_mode):
            root = os.open(process.path_of(entry), _DIRECTORY)
            try:
                packer.pack(root, name)
            finally:
                os.close(root)
        else:
            packer.file(entry, status, name)
        target.write(END)
        target.flush()
    finally:
        os.close(entry)


def extract_archive(handle: Handle, source: BinaryIO, target: str) -> None:
    """Extract a tar stream, compressed or not, into the directory ``target`` inside.

    It is extracted to a private directory of the host first, where no link of the container is, and
    then copied as by ``Container.copy_in``: devices and set-user-ID bits are left out. Raises
    OSError, and :class:`ImageError` for an invalid archive.
    """
    os.close(open_inside(handle, target, _DIRECTORY))
    limits = limits_from_environment()
    with tempfile.TemporaryDirectory(prefix="pytest-sandbox-") as work:
        place = os.path.join(work, "files")
        os.mkdir(place, 0o755)
        with PlainStream(read_chunks(source), limits) as plain:
            unpack(plain, place, limits, end_required=False)
        copy_in(
            lambda path, flags: open_inside(handle, path, flags),
            f"{place}/.",
            target,
            owners=not os.geteuid(),
        )
