"""The members of an OCI layout or an archive of ``docker save``: the files of a directory, or those
of a tar file, which are read in place by their offsets.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

from pytest_sandbox.errors import ImageError
from pytest_sandbox.image.decompress import read_chunks
from pytest_sandbox.image.tar import TarReader
from pytest_sandbox.image.tar_header import BLOCK, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_sandbox.image.size_limits import Limits
    from pytest_sandbox.image.tar_header import Member

__all__ = ["DirectoryMembers", "Members", "TarMembers", "normal_name"]

_MOST_LINKS: Final = 8
#: Directories at the top of a root file system, and never at the top of an archive of images.
_TOP_OF_ROOTFS: Final = frozenset(
    b"bin boot dev etc home lib lib64 media mnt opt proc root run sbin srv sys usr var".split()
)


class Members(Protocol):
    """The named files of a layout or an archive."""

    def has(self, name: str) -> bool: ...
    def size(self, name: str) -> int: ...
    def chunks(self, name: str) -> Iterator[bytes]: ...


class DirectoryMembers:
    """The regular files of a directory."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def _path(self, name: str) -> str:
        if os.path.isabs(name) or ".." in name.split("/"):
            raise ImageError(f"{name!r} is outside of {self._directory}")
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
                raise ImageError(f"{name!r} in {self._directory} is not a regular file")
            yield from read_chunks(file)


class _SeekableSource:
    """A file as the source of a TarReader, which skips by seeking."""

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
        # only named members are read, so data after the end of the archive does no harm
        return True


class TarMembers:
    """The files of a plain tar file, which are read in place.

    Before docker 1.14, ``docker save`` wrote equal layers as links to the first. Reading ends at
    the first member that shows that this is a root file system, as reading 80,000 headers takes as
    long as unpacking half of the files.
    """

    def __init__(self, path: str, limits: Limits) -> None:
        self._path = path
        self._found: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        self.is_rootfs = False
        with open(path, "rb", buffering=BLOCK * 8) as file:
            for count, member in enumerate(TarReader(_SeekableSource(file), limits)):
                if count > limits.entries:
                    raise ImageError(f"{path} has more than {limits.entries} entries")
                if _is_of_rootfs(member):
                    self.is_rootfs = True
                    return
                name = normal_name(os.fsdecode(member.name))
                self._links.pop(name, None)
                if member.kind == b"0" and member.sparse is None:
                    self._found[name] = (file.tell(), member.size)
                elif member.kind in b"12":
                    target = os.fsdecode(member.link)
                    self._links[name] = normal_name(
                        os.path.join(os.path.dirname(name), target)
                        if member.kind == b"2"
                        else target
                    )

    def _resolved(self, name: str) -> tuple[int, int]:
        at = normal_name(name)
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


def _is_of_rootfs(member: Member) -> bool:
    top, slash, _rest = member.name.removeprefix(b"./").partition(b"/")
    return top in _TOP_OF_ROOTFS and (bool(slash) or member.kind in b"25")


def normal_name(name: str) -> str:
    return os.path.normpath(name).lstrip("/")
