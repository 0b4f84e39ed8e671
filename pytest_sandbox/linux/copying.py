"""Copy directory trees through descriptors, without following links; holes in files stay holes.

:func:`copy_tree` copies an overlayfs layer with everything that it stores: owners, modes, times,
extended attributes, devices, symbolic and hard links. Processes of a container may change the
source meanwhile, so files that disappear are skipped, and only regular files are opened.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import NamedTuple, Self

from pytest_sandbox.linux import process
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.directories import (
    DIRECTORY,
    DirectoryStack,
    batches,
    open_entry,
    open_regular,
)

__all__ = ["Copied", "TreeCopy", "copy_content", "copy_tree"]

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 8 << 20
#: Up to this many bytes, read(2) and write(2) are faster than sendfile(2).
_SMALL = 1 << 16
#: The unit of st_blocks in bytes (stat(3type)).
_BLOCK = 512
#: The longest path in characters, of up to 4 bytes each, that can be linked to (PATH_MAX is 4096).
_MAX_PATH = 4000 // 4
_UNLIMITED = 1 << 62
#: Bytes that are read of a file with st_size 0, such as those of procfs and sysfs.
_MAX_UNSIZED = 8 << 20


class Copied(NamedTuple):
    """The size of a copy: bytes of file content, including holes, and entries below its root."""

    size: int
    entries: int


def copy_tree(source: int, target: str, *, owners: bool = True) -> Copied:
    """Copy the directory ``source`` (a descriptor) to the new directory ``target``.

    Sockets are skipped. Without ``owners``, the copy belongs to the calling user. Raises OSError.
    """
    os.mkdir(target, 0o700)
    fd = os.open(target, DIRECTORY)
    try:
        with _LayerCopy(fd, owners=owners) as copy:
            return copy.run(source)
    finally:
        os.close(fd)


def copy_content(source: int, target: int, status: os.stat_result) -> int:
    """Copy a regular file to an empty one with its holes; return its size in bytes.

    ``status`` is the result of fstat(2); it bounds the copy of a file that grows meanwhile.
    """
    size = status.st_size
    if not size or status.st_blocks * _BLOCK >= size:
        return _copy_range(source, target, 0, size or _MAX_UNSIZED)
    at = 0
    while at < size:
        start, end = _next_data(source, at, size)
        os.lseek(target, start, os.SEEK_SET)
        at = start + _copy_range(source, target, start, end - start)
        if at < end:  # the file was truncated
            break
    os.ftruncate(target, at)
    return at


def _next_data(source: int, at: int, size: int) -> tuple[int, int]:
    """Return the start and end of the next data (lseek(2), SEEK_DATA); (size, size) if none."""
    try:
        start = os.lseek(source, at, os.SEEK_DATA)
        end = os.lseek(source, start, os.SEEK_HOLE)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size, size
        return at, size  # a file system without SEEK_DATA
    return min(start, size), min(end, size)


def _copy_range(source: int, target: int, start: int, length: int) -> int:
    """Copy up to ``length`` bytes from ``start`` to the target's position; return their number."""
    done = 0
    while done < length:
        part = _copy_part(source, target, start + done, min(_CHUNK, length - done))
        if not part:
            break
        done += part
    return done


def _copy_part(source: int, target: int, start: int, length: int) -> int:
    if length > _SMALL:
        try:
            return os.sendfile(target, source, start, length)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.ENOSYS, errno.EOVERFLOW}:
                raise
    return _read_and_write(source, target, start, length)


def _read_and_write(source: int, target: int, start: int, length: int) -> int:
    """Copy a part on file systems that do not support sendfile(2), such as procfs."""
    left = memoryview(os.pread(source, length, start))
    size = len(left)
    while left:
        left = left[os.write(target, left) :]
    return size


class TreeCopy:
    """A copy of a tree into the directory ``target``; a subclass copies each entry."""

    def __init__(self, target: int) -> None:
        self._root = target
        #: The names of the directories from the root to the current one.
        self.names: list[str] = []
        self._size = self._count = 0
        #: The first path in the copy of each file with several names (None: it is too long to be
        #: linked to), and the number of names that have not been seen yet.
        self._linked: dict[tuple[int, int], tuple[str | None, int]] = {}

    def run(self, source: int) -> Copied:
        """Copy the content of the directory ``source``, a descriptor."""
        with DirectoryStack(source) as from_, DirectoryStack(self._root) as to:
            pending = [self._entries(from_.fd, to.fd)]
            while True:
                if pending[-1]:
                    name = pending[-1].pop()
                    if self._descend(from_, to, name):
                        pending.append(self._entries(from_.fd, to.fd))
                    continue
                self.leave(from_.fd, to.fd)
                pending.pop()
                if not pending:
                    return Copied(self._size, self._count)
                from_.pop()
                to.pop()
                self.names.pop()

    def _entries(self, source: int, target: int) -> list[str]:
        """Copy the entries that are not directories; return the names of the directories."""
        directories = []
        for batch in batches(source):
            for entry in batch:
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.name)
                else:
                    self._entry(source, target, entry.name)
        return directories

    def _entry(self, source: int, target: int, name: str) -> None:
        try:
            entry = open_entry(name, source)
        except FileNotFoundError:
            return
        try:
            status = os.fstat(entry)
            if not stat.S_ISDIR(status.st_mode) and not self.link_again(status, target, name):
                self.file(entry, status, target, name)
        except ProcessLookupError:  # a file of /proc/PID whose process has ended
            return
        finally:
            os.close(entry)

    def _descend(self, from_: DirectoryStack, to: DirectoryStack, name: str) -> bool:
        try:
            source = os.open(name, DIRECTORY, dir_fd=from_.fd)
        except (FileNotFoundError, NotADirectoryError):
            return False
        from_.push(source)
        to.push(self.directory(to.fd, name))
        self.names.append(name)
        self._count += 1
        return True

    def count(self, size: int = 0) -> None:
        """Count one more entry, and the size of its content."""
        self._count += 1
        self._size += size

    def link_again(
        self, status: os.stat_result, target: int, name: str, *, always: bool = False
    ) -> bool:
        """Link ``name`` to the copy of a file that was copied under another name.

        Returns False if this is its first name. ``always`` includes files with one link, if the
        caller finds the same file in several places.
        """
        if (status.st_nlink < 2 and not always) or not self.is_linked(status):
            return False
        key = (status.st_dev, status.st_ino)
        first, left = self._linked.get(key, ("", _UNLIMITED if always else status.st_nlink))
        if first and self._link_to(first, target, name):
            self.count()
            self._remember(key, first, left - 1)
            return True
        if first is None and status.st_size:
            # Copying its content once for each name would multiply the size.
            raise OSError(
                errno.ENAMETOOLONG,
                "it has several hard links, and the path of the first is too long to link to",
                name,
            )
        path = "/".join([*self.names, name])
        self._remember(key, path if len(path) <= _MAX_PATH else None, left - 1)
        return False

    def _remember(self, key: tuple[int, int], first: str | None, left: int) -> None:
        if left > 0:
            self._linked[key] = first, left
        else:
            self._linked.pop(key, None)

    def _link_to(self, first: str, target: int, name: str) -> bool:
        """Link ``name`` to a file of the copy.

        Returns False if it has the maximum number of links or was removed (link(2), openat2(2)).
        """
        try:
            fd = sc.openat2(
                first,
                os.O_PATH | os.O_NOFOLLOW,
                sc.RESOLVE_BENEATH | sc.RESOLVE_NO_SYMLINKS,
                dir_fd=self._root,
            )
        except OSError:
            return False
        try:
            os.link(process.path_of(fd), name, dst_dir_fd=target, follow_symlinks=True)
        except OSError as error:
            if error.errno in {errno.EMLINK, errno.EEXIST, errno.ENOENT, errno.EPERM, errno.EXDEV}:
                return False
            raise
        finally:
            os.close(fd)
        return True

    # What a subclass implements.

    def is_linked(self, status: os.stat_result) -> bool:
        """Return whether hard links to a file are hard links in the copy too."""
        return not stat.S_ISSOCK(status.st_mode)

    def file(self, entry: int, status: os.stat_result, target: int, name: str) -> None:
        """Copy a file that is not a directory; ``entry`` is an O_PATH descriptor of it."""
        raise NotImplementedError

    def directory(self, target: int, name: str) -> int:
        """Create a directory of the copy; return a descriptor of it."""
        raise NotImplementedError

    def leave(self, source: int, target: int) -> None:
        """Finish a directory, including the root, after its content was copied."""
        raise NotImplementedError


class _LayerCopy(TreeCopy):
    """A copy of an overlayfs layer."""

    def __init__(self, target: int, *, owners: bool) -> None:
        super().__init__(target)
        self._owners = owners
        self._whiteout = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._whiteout >= 0:
            os.close(self._whiteout)

    def is_linked(self, status: os.stat_result) -> bool:
        return not stat.S_ISSOCK(status.st_mode) and not _is_whiteout(status)

    def file(self, entry: int, status: os.stat_result, target: int, name: str) -> None:
        if stat.S_ISREG(status.st_mode):
            self._regular(entry, status, target, name)
        elif _is_whiteout(status):
            self._make_whiteout(target, name)
        elif not stat.S_ISSOCK(status.st_mode):
            self._special(entry, status, target, name)

    def _regular(self, entry: int, status: os.stat_result, target: int, name: str) -> None:
        read = open_regular(entry)
        try:
            write = os.open(name, _NEW_FILE, 0o600, dir_fd=target)
            try:
                self.count(copy_content(read, write, status))
                # write(2) and chown(2) clear set-user-ID bits and capabilities, so those come last.
                self._set_owner(status, write)
                _copy_attributes(read, write)
                os.fchmod(write, stat.S_IMODE(status.st_mode))
                os.utime(write, ns=(status.st_atime_ns, status.st_mtime_ns))
            finally:
                os.close(write)
        finally:
            os.close(read)

    def _set_owner(self, status: os.stat_result, target: int) -> None:
        if self._owners:
            with suppress(PermissionError):
                os.fchown(target, status.st_uid, status.st_gid)

    def _special(self, entry: int, status: os.stat_result, target: int, name: str) -> None:
        """Copy a symbolic link, a FIFO or a device node."""
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink("", dir_fd=entry), name, dir_fd=target)
        else:
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=target)
        if self._owners:
            with suppress(PermissionError):
                os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=target)
        os.utime(
            name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=target, follow_symlinks=False
        )
        self.count()

    def _make_whiteout(self, target: int, name: str) -> None:
        """Create a whiteout; as those of the kernel, whiteouts share an inode, to save inodes."""
        self.count()
        if self._whiteout >= 0:
            with suppress(OSError):  # EMLINK: the inode has the maximum number of links
                os.link(
                    process.path_of(self._whiteout), name, dst_dir_fd=target, follow_symlinks=True
                )
                return
        os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=target)
        if self._whiteout >= 0:
            os.close(self._whiteout)
        self._whiteout = open_entry(name, target)

    def directory(self, target: int, name: str) -> int:
        os.mkdir(name, 0o700, dir_fd=target)
        return os.open(name, DIRECTORY, dir_fd=target)

    def leave(self, source: int, target: int) -> None:
        status = os.fstat(source)
        _copy_attributes(source, target)
        self._set_owner(status, target)
        os.fchmod(target, stat.S_IMODE(status.st_mode))
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _copy_attributes(source: int, target: int) -> None:
    for name in os.listxattr(source):
        with suppress(OSError):  # an attribute that the target's file system does not support
            os.setxattr(target, name, os.getxattr(source, name))
