"""Write directory trees as tar streams: layers of images, and copies of a container's files.

Directories are read through descriptors without following links, in the order of their names, so
that the same tree gives the same bytes. In a layer, overlayfs's whiteouts and opaque directories
become those of tar layers (OCI image spec, layer.md).
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import ImageError
from pytest_sandbox.linux.directories import DIRECTORY, DirectoryStack, open_entry, open_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

__all__ = ["END", "TreePacker", "header", "padding"]

#: The end of a tar stream.
END: Final = bytes(1024)
_BLOCK: Final = 512
_CHUNK: Final = 1 << 20
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_OPAQUE_ATTRIBUTES: Final = ("trusted.overlay.opaque", "user.overlay.opaque")
_REDIRECTS: Final = ("trusted.overlay.redirect", "user.overlay.redirect")
#: Attributes that overlayfs interprets, or that belong to this host.
_PRIVATE: Final = ("trusted.", "user.overlay.", "security.selinux", "security.ima", "system.")
_KINDS: Final = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


def header(info: tarfile.TarInfo) -> bytes:
    """Return the header of an entry, with the extended header that it needs (POSIX pax)."""
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def padding(size: int) -> bytes:
    """Return the zeros after the content of an entry."""
    return bytes(-size % _BLOCK)


class TreePacker:
    """Writes entries with ``write``; the caller writes :data:`END` after them.

    ``is_layer``: the tree is the upper directory of an overlay. ``implied`` are the paths of its
    directories that have no entry of their own. Without root, files belong to root in the archive,
    as they do in a container.
    """

    def __init__(
        self,
        write: Callable[[bytes], object],
        *,
        is_layer: bool = False,
        implied: Collection[str] = (),
    ) -> None:
        self._write = write
        self._is_layer = is_layer
        self._implied = implied
        self._user, self._group = os.geteuid(), os.getegid()
        self._linked: dict[tuple[int, int], str] = {}

    def pack(self, root: int, name: str = "") -> None:
        """Write the directory ``root``, a descriptor, as ``name`` (default: the archive's root).

        Raises OSError, and :class:`ImageError` for a directory that tar cannot express.
        """
        with DirectoryStack(root) as stack:
            names = [name] if name else []
            pending = [self._directory(stack.fd, names)]
            while pending:
                if not pending[-1]:
                    pending.pop()
                    if pending:
                        stack.pop()
                        names.pop()
                    continue
                entry = pending[-1].pop()
                with suppress(FileNotFoundError, NotADirectoryError):
                    stack.push(os.open(entry, DIRECTORY, dir_fd=stack.fd))
                    names.append(entry)
                    pending.append(self._directory(stack.fd, names))

    def _directory(self, fd: int, names: list[str]) -> list[str]:
        """Write a directory and its files; return the names of its directories, last first."""
        path = "/".join(names)
        if path not in self._implied:
            self._entry(fd, os.fstat(fd), path or ".")
        if self._is_layer:
            self._check_redirect(fd, path)
            if any(_attribute(fd, name) == b"y" for name in _OPAQUE_ATTRIBUTES):
                self._write(header(_empty(f"{path}/{_OPAQUE}" if path else _OPAQUE)))
        prefix = f"{path}/" if path else ""
        below = [name for name in sorted(os.listdir(fd)) if self._file(fd, name, prefix + name)]
        return below[::-1]

    def _file(self, directory: int, name: str, path: str) -> bool:
        """Write a file; return whether it is a directory, which is not written."""
        try:
            entry = open_entry(name, directory)
        except FileNotFoundError:
            return False
        try:
            status = os.fstat(entry)
            if stat.S_ISDIR(status.st_mode):
                return True
            if self._is_layer and stat.S_ISCHR(status.st_mode) and not status.st_rdev:
                parent = path.removesuffix(name)
                self._write(header(_empty(f"{parent}{_WHITEOUT}{name}")))
            else:
                self.file(entry, status, path)
        finally:
            os.close(entry)
        return False

    def file(self, entry: int, status: os.stat_result, path: str) -> None:
        """Write a file that is not a directory; ``entry`` is an O_PATH descriptor of it."""
        if stat.S_ISSOCK(status.st_mode):
            return
        key = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and key in self._linked:
            link = _empty(path)
            link.type, link.linkname = tarfile.LNKTYPE, self._linked[key]
            self._write(header(link))
            return
        self._linked[key] = path
        if stat.S_ISREG(status.st_mode):
            read = open_regular(entry)
            try:
                self._entry(read, status, path)
                self._content(read, status.st_size)
            finally:
                os.close(read)
        else:
            self._entry(entry, status, path)

    def _content(self, fd: int, size: int) -> None:
        """Write exactly ``size`` bytes: the file may change meanwhile."""
        left = size
        while left and (data := os.read(fd, min(left, _CHUNK))):
            self._write(data)
            left -= len(data)
        while left:
            self._write(bytes(min(left, _CHUNK)))
            left -= min(left, _CHUNK)
        self._write(padding(size))

    def _entry(self, fd: int, status: os.stat_result, path: str) -> None:
        kind = stat.S_IFMT(status.st_mode)
        info = _empty(path)
        records: dict[str, str] = {}
        info.type = _KINDS[kind]
        info.mode = stat.S_IMODE(status.st_mode)
        info.uid, info.gid = self._owner(status)
        info.mtime, fraction = divmod(status.st_mtime_ns, 1_000_000_000)
        if fraction and info.mtime >= 0:
            records["mtime"] = f"{info.mtime}.{fraction:09d}"
        if kind == stat.S_IFREG:
            info.size = status.st_size
        elif kind == stat.S_IFLNK:
            info.linkname = os.readlink("", dir_fd=fd)
        elif kind in {stat.S_IFCHR, stat.S_IFBLK}:
            info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        if kind in {stat.S_IFREG, stat.S_IFDIR}:
            records |= _attributes(fd)
        info.pax_headers = records
        self._write(header(info))

    def _owner(self, status: os.stat_result) -> tuple[int, int]:
        if not self._user:
            return status.st_uid, status.st_gid
        uid = 0 if status.st_uid == self._user else status.st_uid
        return uid, 0 if status.st_gid == self._group else status.st_gid

    def _check_redirect(self, fd: int, path: str) -> None:
        if any(_attribute(fd, name) is not None for name in _REDIRECTS):
            raise ImageError(
                f"/{path}: a directory of the image below was renamed, which an archive of layers "
                "cannot express. In the container, copy it (cp -a) and remove the old one, and "
                "commit again."
            )


def _empty(path: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.mode = 0o644
    return info


def _attribute(fd: int, name: str) -> bytes | None:
    with suppress(OSError):
        return os.getxattr(fd, name)
    return None


def _attributes(fd: int) -> dict[str, str]:
    """Return the extended attributes of a file as records of a pax header."""
    found = {}
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno in {errno.ENOTSUP, errno.EBADF}:
            return {}
        raise
    for name in sorted(names):
        if not name.startswith(_PRIVATE):
            with suppress(OSError):
                value = os.getxattr(fd, name)
                found[f"SCHILY.xattr.{name}"] = value.decode("utf-8", "surrogateescape")
    return found
