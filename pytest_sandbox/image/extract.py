"""Extraction of a layer's tar stream into a directory that overlayfs can mount.

A file of this user takes four system calls, and one for each piece of its content, which is written
from the decompressor's buffer without a copy. What this user is not permitted to do (owners,
devices, some attributes) is counted in :class:`Unpacked`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pytest_sandbox.errors import ImageError
from pytest_sandbox.image.layer_writer import WHITEOUT_PREFIX, Tree
from pytest_sandbox.image.tar import TarReader
from pytest_sandbox.image.tar_header import Member, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_sandbox.image.size_limits import Budget, Limits

__all__ = ["Unpacked", "unpack"]

_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HIGHEST_ID: Final = (1 << 32) - 2  # (uid_t)-1 means "unchanged" to chown(2)
_SECOND: Final = 1_000_000_000
_EARLIEST: Final = -(1 << 31) * _SECOND
_LATEST: Final = (1 << 33) * _SECOND
_IMPLIED: Final = _EARLIEST - 1  # the mtime of an implied directory
_DEVICES: Final = {b"3": stat.S_IFCHR, b"4": stat.S_IFBLK}
_AUFS: Final = b".wh..wh."  # metadata of aufs in a layer (mount.aufs(8))
_AUFS_OPAQUE: Final = b".wh..wh..opq"
_AUFS_LINKS: Final = b".wh..wh.plnk"
_COUNTED: Final = 1000  # entries are added to the budget in these steps
_NOT_PERMITTED: Final = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOTSUP)


@dataclass(slots=True)
class Unpacked:
    """The result of extracting a layer: the ``size`` of its files in bytes (including holes), the
    number of ``entries``, and ``not_kept``, which counts attributes that could not be set.

    ``implied`` are the directories (``b""`` is the root) that contain entries but have none
    themselves: image/chain.py sets their attributes. ``whiteouts`` are the directories that contain
    whiteouts.
    """

    entries: int = 0
    size: int = 0
    opaque_root: bool = False
    implied: list[bytes] = field(default_factory=list)
    whiteouts: list[bytes] = field(default_factory=list)
    not_kept: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Attributes:
    """The attributes of a directory, which are set when its content is complete."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int | None


def unpack(
    pieces: Iterable[bytes],
    root: str,
    limits: Limits,
    *,
    end_required: bool = True,
    budget: Budget | None = None,
) -> Unpacked:
    """Extract the layer in ``pieces`` (a plain tar stream) into the empty directory ``root``.

    ``end_required`` requires the archive's end marker: without it, a stream that is cut between two
    entries cannot be told from a complete one. ``budget`` counts the entries of all layers of the
    image. Raises ImageError, with the entry's path, for anything that is damaged, hostile or
    exceeds ``limits``.
    """
    reader = TarReader(pieces, limits)
    unpacker = _Unpacker(root, limits, budget)
    try:
        for member in reader:
            try:
                unpacker.add(member, reader)
            except (OSError, EOFError, OverflowError) as error:
                raise ImageError(f"{printable(member.name)}: {_explained(error)}") from error
        if end_required and not reader.complete:
            raise ImageError("the archive is cut off: it has no end marker")
        unpacker.finish()
    finally:
        unpacker.close()
    return unpacker.result


def _explained(error: OSError | EOFError | OverflowError) -> str:
    if isinstance(error, EOFError):
        return "the archive is cut off within this entry"
    if isinstance(error, OverflowError):
        return "a number is out of range"
    text = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{text}. Make room with `pytest-sandbox prune`, or put the store elsewhere with "
            "PYTEST_SANDBOX_HOME."
        )
    return text


class _Unpacker:
    """The directory of one layer, and the attributes to set on its subdirectories at the end."""

    def __init__(self, root: str, limits: Limits, budget: Budget | None) -> None:
        self.result = Unpacked()
        self._limits = limits
        self._root = root
        self._tree = Tree(root, limits, self._add_implied)
        self._directories: list[tuple[bytes, int, int, int, int]] = []
        self._uid, self._gid = os.geteuid(), os.getegid()
        self._entries = 0
        self._budget = budget
        self._bytes_left = limits.layer_bytes
        self._has_links_of_aufs = False
        self._add_implied(b"")

    def add(self, member: Member, reader: TarReader) -> None:
        """Create the file of one entry."""
        self._count()
        if member.uid > _HIGHEST_ID or member.gid > _HIGHEST_ID:
            raise ImageError(
                f"{printable(member.name)}: owner {member.uid}:{member.gid} is out of range"
            )
        if _AUFS in member.name and self._is_aufs_metadata(member):
            return
        parent, base = self._tree.place(member.name)
        kind = member.kind
        if base.startswith(WHITEOUT_PREFIX):
            self._tree.whiteout(parent, base, member.name)
        elif kind == b"0":
            self._file(parent, base, member, reader)
        elif kind == b"5":
            self._directory(parent, base, member)
        elif kind == b"1":
            self._hard_link(base, member)
        elif kind == b"2":
            self._link(parent, base, member)
        elif kind in b"346":
            self._node(parent, base, member)
        else:
            raise ImageError(f"{printable(member.name)}: an entry of unknown type {kind!r}")

    def _count(self) -> None:
        self._entries += 1
        if self._entries > self._limits.entries:
            raise ImageError(f"more than {self._limits.entries} entries")
        if self._budget and self._entries % _COUNTED == 0:
            self._budget.add_entries(_COUNTED)

    def _is_aufs_metadata(self, member: Member) -> bool:
        """Tell whether an entry is metadata of aufs and not a file of the layer.

        Files in .wh..wh.plnk are targets of hard links, and are removed at the end.
        """
        parts = self._tree.parts(member.name)
        if not any(part.startswith(_AUFS) and part != _AUFS_OPAQUE for part in parts):
            return False
        is_target = parts[0] == _AUFS_LINKS and len(parts) == 2 and member.kind == b"0"
        self._has_links_of_aufs |= is_target
        return not is_target

    def finish(self) -> None:
        """Set the attributes of directories, subdirectories first: creating files changes an mtime,
        and a mode can deny writing.
        """
        self._directories.sort(key=lambda record: record[0])
        done = None
        for path, mode, uid, gid, mtime_ns in reversed(self._directories):
            if path == done:
                continue  # an earlier entry of the same directory
            done = path
            attributes = _Attributes(mode, uid, gid, None if mtime_ns == _IMPLIED else mtime_ns)
            with contextlib.suppress(
                FileNotFoundError, NotADirectoryError, ImageError
            ):  # a later entry replaced it or a parent
                self._finish_directory(path, attributes)
                if mtime_ns == _IMPLIED and path != _AUFS_LINKS:
                    self.result.implied.append(path)
        self.result.entries = self._entries
        if self._budget:
            self._budget.add_entries(self._entries % _COUNTED)
        self.result.opaque_root = self._tree.opaque_root
        self.result.whiteouts = sorted(self._tree.whiteouts)
        if self._has_links_of_aufs:
            shutil.rmtree(os.path.join(os.fsencode(self._root), _AUFS_LINKS))

    def close(self) -> None:
        self._tree.close()

    def _file(self, parent: int, base: bytes, member: Member, reader: TarReader) -> None:
        self._bytes_left -= member.size
        if self._bytes_left < 0:
            raise ImageError(
                f"{printable(member.name)}: the layer's files are larger than "
                f"{self._limits.layer_bytes} bytes. "
                "Set PYTEST_SANDBOX_MAX_LAYER to allow more."
            )
        try:
            fd = os.open(base, _NEW_FILE, 0o600, dir_fd=parent)
        except FileExistsError:
            self._tree.clear(parent, base, member.name)
            parent, base = self._tree.place(member.name)
            fd = os.open(base, _NEW_FILE, 0o600, dir_fd=parent)
        try:
            if member.sparse is not None:
                _write_sparse(fd, member, reader)
            elif member.stored:
                for view in reader.data():
                    _write(fd, view)
            self._describe(fd, member)
        finally:
            os.close(fd)
        self.result.size += member.size

    def _describe(self, fd: int, member: Member) -> None:
        """Set owner, mode, xattrs and mtime, in this order: chown(2) clears setuid bits and
        capabilities.
        """
        if member.uid != self._uid or member.gid != self._gid:
            self._own(fd, member.uid, member.gid)
        os.fchmod(fd, member.mode)
        if member.xattrs:
            self._set_xattrs(fd, member)
        mtime = _in_range(member.mtime_ns)
        os.utime(fd, ns=(mtime, mtime))

    def _own(self, fd: int, uid: int, gid: int) -> None:
        try:
            os.fchown(fd, uid, gid)
        except OSError as error:
            self._count_not_kept(error, "owner")

    def _set_xattrs(self, fd: int, member: Member) -> None:
        for name, value in member.xattrs:
            if name.startswith((b"trusted.", b"user.overlay.", b"security.selinux")):
                self.result.not_kept[f"attribute {printable(name)}"] += (
                    1  # overlayfs interprets it, or the host
                )
                continue
            try:
                os.setxattr(fd, name, value)
            except OSError as error:
                self._count_not_kept(error, f"attribute {printable(name)}")

    def _count_not_kept(self, error: OSError, what: str) -> None:
        if error.errno not in _NOT_PERMITTED:
            raise error
        self.result.not_kept[what] += 1

    def _directory(self, parent: int, base: bytes, member: Member) -> None:
        self._tree.directory(parent, base, member.name)
        path = b"/".join(self._tree.parts(member.name))
        self._remember_directory(
            path, member.mode, member.uid, member.gid, _in_range(member.mtime_ns)
        )
        if member.xattrs:
            fd = os.open(base, _READ_DIRECTORY, dir_fd=parent)
            try:
                self._set_xattrs(fd, member)
            finally:
                os.close(fd)

    def _add_implied(self, path: bytes) -> None:
        self._remember_directory(path, 0o755, self._uid, self._gid, _IMPLIED)

    def _remember_directory(
        self, path: bytes, mode: int, uid: int, gid: int, mtime_ns: int
    ) -> None:
        if len(self._directories) >= self._limits.directories:
            raise ImageError(f"more than {self._limits.directories} directories")
        self._directories.append((path, mode, uid, gid, mtime_ns))

    def _finish_directory(self, path: bytes, attributes: _Attributes) -> None:
        parent, base = self._tree.existing(path) if path else self._tree.place(b".")
        fd = os.open(base, _READ_DIRECTORY, dir_fd=parent)
        try:
            if attributes.uid != self._uid or attributes.gid != self._gid:
                self._own(fd, attributes.uid, attributes.gid)
            os.fchmod(fd, attributes.mode)
            if attributes.mtime_ns is not None:
                os.utime(fd, ns=(attributes.mtime_ns, attributes.mtime_ns))
        finally:
            os.close(fd)

    def _hard_link(self, base: bytes, member: Member) -> None:
        try:
            source, source_base = self._tree.existing(member.link)
        except FileNotFoundError:
            raise ImageError(
                f"{printable(member.name)}: a hard link to {printable(member.link)}, which does "
                "not exist in the layer"
            ) from None
        source = os.dup(source)
        try:
            parent, base = self._tree.place(member.name)
            self._link_to(source, source_base, parent, base, member)
        finally:
            os.close(source)

    def _link_to(
        self, source: int, source_base: bytes, parent: int, base: bytes, member: Member
    ) -> None:
        try:
            status = os.stat(source_base, dir_fd=source, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                raise ImageError(
                    f"{printable(member.name)}: a hard link to the directory "
                    f"{printable(member.link)}"
                )
            try:
                os.link(
                    source_base, base, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False
                )
            except FileExistsError:
                if os.path.samestat(status, os.stat(base, dir_fd=parent, follow_symlinks=False)):
                    return
                self._tree.clear(parent, base, member.name)
                parent, base = self._tree.place(member.name)
                os.link(
                    source_base, base, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False
                )
        except FileNotFoundError:
            raise ImageError(
                f"{printable(member.name)}: a hard link to {printable(member.link)}, which does "
                "not exist in the layer"
            ) from None

    def _link(self, parent: int, base: bytes, member: Member) -> None:
        if not member.link:
            raise ImageError(f"{printable(member.name)}: a symbolic link without a target")
        try:
            os.symlink(member.link, base, dir_fd=parent)
        except FileExistsError:
            self._tree.clear(parent, base, member.name)
            parent, base = self._tree.place(member.name)
            os.symlink(member.link, base, dir_fd=parent)
        self._describe_name(parent, base, member)

    def _node(self, parent: int, base: bytes, member: Member) -> None:
        """Create a device or a FIFO, which other users cannot reach: the store has mode 0700."""
        device = os.makedev(*member.device) if member.kind != b"6" else 0
        file_type = _DEVICES.get(member.kind, stat.S_IFIFO)
        with contextlib.suppress(FileNotFoundError):
            self._tree.clear(parent, base, member.name)
            parent, base = self._tree.place(member.name)
        try:
            os.mknod(base, file_type | 0o600, device, dir_fd=parent)
        except OSError as error:
            self._count_not_kept(error, "device")
            return
        self._describe_name(parent, base, member)
        os.chmod(base, member.mode, dir_fd=parent)

    def _describe_name(self, parent: int, base: bytes, member: Member) -> None:
        """Set owner and mtime of a symbolic link, device or FIFO."""
        if member.uid != self._uid or member.gid != self._gid:
            try:
                os.chown(base, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
            except OSError as error:
                self._count_not_kept(error, "owner")
        for name, _value in member.xattrs:
            self.result.not_kept[f"attribute {printable(name)} of a link or device"] += 1
        mtime = _in_range(member.mtime_ns)
        os.utime(base, ns=(mtime, mtime), dir_fd=parent, follow_symlinks=False)


def _in_range(time_ns: int) -> int:
    """Return a time that all file systems support."""
    return time_ns if _EARLIEST <= time_ns <= _LATEST else _EARLIEST if time_ns < 0 else _LATEST


def _write(fd: int, view: memoryview) -> None:
    while (written := os.write(fd, view)) < len(view):
        view = view[written:]


def _write_sparse(fd: int, member: Member, reader: TarReader) -> None:
    os.ftruncate(fd, member.size)
    views = reader.data()
    view = memoryview(b"")
    for offset, length in member.sparse or ():
        os.lseek(fd, offset, os.SEEK_SET)
        while length > 0:
            view = view or next(views)
            _write(fd, view[:length])
            used = min(length, len(view))
            view, length = view[used:], length - used  # noqa: PLW2901 - the rest of this part
