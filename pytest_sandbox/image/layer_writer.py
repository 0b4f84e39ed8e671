"""The directory of a layer while it is extracted.

Names from the archive are resolved from its root, one component at a time, without following
symbolic links.
Names that leave the directory, or lead through anything but a directory, are an ImageError.
Whiteouts are created in overlayfs' form (Documentation/filesystems/overlayfs.rst): 0:0 devices and
the ``opaque`` attribute.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import ImageError
from pytest_sandbox.image.tar_header import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.image.size_limits import Limits

__all__ = ["WHITEOUT_PREFIX", "Tree", "is_whiteout"]

WHITEOUT_PREFIX: Final = b".wh."
_OPEN_DIRECTORIES: Final = 192  # three layers at a time stay below a RLIMIT_NOFILE of 1024
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


class Tree:
    """The directory ``root`` with a cache of descriptors of its directories.

    ``whiteouts`` are the directories that contain whiteouts. ``opaque_root`` tells that the layer
    hides all layers below it, as overlayfs ignores the attribute of the root.
    """

    def __init__(self, root: str, limits: Limits, on_implied: Callable[[bytes], None]) -> None:
        """Open an empty directory. ``on_implied`` is called with the path of each directory that
        is created because an entry is in it.
        """
        self.opaque_root = False
        self.whiteouts: set[bytes] = set()
        self.privileged = os.geteuid() == 0
        self._limits = limits
        self._on_implied = on_implied
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._open: dict[bytes, int] = {b"": self._root}

    def close(self) -> None:
        self._close_directories()
        os.close(self._root)

    def place(self, name: bytes) -> tuple[int, bytes]:
        """Return the descriptor of the parent directory of ``name`` and its last component, or
        (root, b".") for the root itself.

        Missing parent directories are created. The descriptor is valid until the next call.
        """
        head, _, base = name.rpartition(b"/")
        directory = self._open.get(head)
        if directory is not None and base not in (b"", b".", b"..") and name[:1] != b"/":
            return directory, base
        parts = self.parts(name)
        if not parts:
            return self._root, b"."
        return self._walk(parts[:-1]), parts[-1]

    def existing(self, name: bytes) -> tuple[int, bytes]:
        """As :meth:`place`, for the target of a hard link: nothing is created, and a leading "/"
        is the layer's root (kaniko writes it).
        """
        parts = self.parts(name.lstrip(b"/"))
        if not parts:
            raise ImageError(f"{printable(name)}: a hard link to the root directory")
        return self._walk(parts[:-1], make=False), parts[-1]

    def parts(self, name: bytes) -> list[bytes]:
        """Split a name. Raises ImageError if it is absolute, has "..", or is too long or deep."""
        if name in (b"/", b"./", b"."):
            return []
        if name.startswith(b"/") or not name:
            raise ImageError(f"{printable(name)!r}: an absolute or empty name")
        parts = [part for part in name.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise ImageError(f"{printable(name)}: the name leads out of the layer with '..'")
        if len(name) > self._limits.path_bytes or len(parts) > self._limits.path_depth:
            raise ImageError(
                f"{printable(name)}: the name is longer than {self._limits.path_bytes} bytes or "
                f"{self._limits.path_depth} directories"
            )
        return parts

    def directory(self, parent: int, base: bytes, name: bytes) -> None:
        """Create the directory ``name`` unless it exists; replace anything else."""
        if base == b".":
            return
        try:
            os.mkdir(base, 0o700, dir_fd=parent)
        except FileExistsError:
            status = os.stat(base, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                return
            os.unlink(base, dir_fd=parent)
            os.mkdir(base, 0o700, dir_fd=parent)
            if is_whiteout(status):  # the layer replaces the directory of the layers below
                self._make_opaque(parent, base, name)

    def clear(self, parent: int, base: bytes, name: bytes) -> None:
        """Remove what an earlier entry of the same name created: the last entry counts."""
        if base == b".":
            raise ImageError(f"{printable(name)}: the root of a layer must be a directory")
        status = os.stat(base, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            parent = os.dup(parent)
            try:
                self._close_directories()
                shutil.rmtree(base, dir_fd=parent)
            finally:
                os.close(parent)
        else:
            os.unlink(base, dir_fd=parent)

    def whiteout(self, parent: int, base: bytes, name: bytes) -> None:
        """Apply a whiteout entry: a deletion, or an opaque directory (OCI image spec, layer.md)."""
        target = base[len(WHITEOUT_PREFIX) :]
        if base == b".wh..wh..opq":
            self._make_opaque(parent, b".", name)
        elif target.startswith(WHITEOUT_PREFIX):
            return  # metadata of aufs
        elif target in (b"", b".", b".."):
            raise ImageError(f"{printable(name)}: a whiteout without a name, or of '.' or '..'")
        else:
            self._delete(parent, target, name)

    def _delete(self, parent: int, target: bytes, name: bytes) -> None:
        """Create a whiteout of ``target``. Entries of this layer stay, as whiteouts apply to lower
        layers only (layer.md).
        """
        self.whiteouts.add(b"/".join(self.parts(name)[:-1]))
        try:
            os.mknod(target, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)
        except FileExistsError:
            if stat.S_ISDIR(os.stat(target, dir_fd=parent, follow_symlinks=False).st_mode):
                self._make_opaque(parent, target, name)
        except PermissionError as error:
            raise ImageError(
                f"{printable(name)}: whiteouts cannot be created on this file system, as on an "
                "overlay (such as docker's root). "
                "Put the store on another one with PYTEST_SANDBOX_HOME: a volume, or a directory "
                "in /dev/shm."
            ) from error

    def _make_opaque(self, parent: int, base: bytes, name: bytes) -> None:
        fd = os.open(
            base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent
        )
        try:
            if os.path.samestat(os.fstat(fd), os.fstat(self._root)):
                self.opaque_root = True
                return
            os.setxattr(
                fd, b"trusted.overlay.opaque" if self.privileged else b"user.overlay.opaque", b"y"
            )
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM):
                raise
            raise ImageError(
                f"{printable(name)}: directories cannot be marked as opaque on this file system "
                f"({error.strerror}). "
                "Put the store on another one with PYTEST_SANDBOX_HOME; on a tmpfs, user "
                "attributes need Linux 6.6."
            ) from error
        finally:
            os.close(fd)

    def _walk(self, parts: list[bytes], *, make: bool = True) -> int:
        """Open the directory of ``parts``, a component at a time after those that are open."""
        known = len(parts)
        while (directory := self._open.get(b"/".join(parts[:known]))) is None:
            known -= 1
        if len(self._open) > _OPEN_DIRECTORIES:
            self._close_directories()
            directory, known = self._root, 0
        for depth in range(known, len(parts)):
            path = b"/".join(parts[: depth + 1])
            directory = self._open[path] = self._step(directory, parts[depth], path, make=make)
        return directory

    def _step(self, parent: int, part: bytes, path: bytes, *, make: bool) -> int:
        with contextlib.suppress(FileNotFoundError):
            try:
                return os.open(part, _DIRECTORY, dir_fd=parent)
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                if not make or not is_whiteout(os.stat(part, dir_fd=parent, follow_symlinks=False)):
                    raise ImageError(
                        f"{printable(path)}: an entry goes through a link or a file, not a "
                        "directory"
                    ) from None
                self._on_implied(path)
                self.directory(parent, part, path)
                return os.open(part, _DIRECTORY, dir_fd=parent)
        if not make:
            raise FileNotFoundError(errno.ENOENT, "no such directory in the layer", path)
        self._on_implied(path)
        os.mkdir(part, 0o700, dir_fd=parent)
        return os.open(part, _DIRECTORY, dir_fd=parent)

    def _close_directories(self) -> None:
        for path, fd in self._open.items():
            if path:
                os.close(fd)
        self._open = {b"": self._root}
