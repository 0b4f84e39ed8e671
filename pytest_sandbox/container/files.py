"""Files in a container, opened by their paths inside, so that no link leads to the host.

A path is resolved by a child of this process that is in the container's mount namespace. Below the
descriptor of a directory, each step is one name that is opened with O_NOFOLLOW.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from typing import TYPE_CHECKING

from pytest_sandbox.container import transfer
from pytest_sandbox.container.entrance import entrance_of, raise_for
from pytest_sandbox.linux import pty
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.linux.syscall_batch import SyscallBatch

if TYPE_CHECKING:
    from pytest_sandbox.container.handle import Handle

__all__ = [
    "Files",
    "make_directory",
    "open_directory",
    "open_inside",
    "open_terminal",
    "read_regular",
]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all

_READ = os.O_RDONLY
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
#: Bytes that are read at most of a device or a FIFO, and of a file for the library's own use.
_DEVICE_MAX = 1 << 20
_REGULAR_MAX = 8 << 20
#: Never wait for the other end of a FIFO, and never make a terminal the controlling one.
_NO_WAIT = os.O_NONBLOCK | os.O_NOCTTY

Path = str | os.PathLike[str]


def open_inside(
    handle: Handle, path: Path, flags: int, mode: int = 0, *, follow: bool = True
) -> int:
    """Open a path inside with the rights of root inside; return a descriptor.

    ``path`` is relative to the container's working directory; ``flags`` and ``mode`` are those of
    open(2). Without ``follow``, no symbolic link in the path is followed. Raises what
    :func:`os.open` would, and :class:`ContainerStopped`.

    A child opens it that shares this process's memory and descriptors. It is in the container's
    mount namespace but not in its PID namespace: nothing in the container can see or stop it, and
    "self" in the container's /proc does not lead to this process.
    """
    name = os.fspath(path)
    place = os.fsencode(os.path.join(handle.workdir, name))
    if b"\0" in place:
        raise ValueError("embedded null byte")
    batch = SyscallBatch()
    entrance_of(handle).add_file_access(batch)
    # A magic link of procfs could lead out of the container (openat2(2)).
    resolve = sc.RESOLVE_NO_MAGICLINKS if follow else sc.RESOLVE_NO_SYMLINKS
    how = sc.open_how(flags if flags & os.O_PATH else flags | _NO_WAIT, resolve, mode)
    found = batch.open_as("open", place, how)
    try:
        with Deferred():
            failure = batch.try_in_child(sc.CLONE_FILES)
    except BaseException:  # of a signal handler, when the block ends
        batch.close_leaks()
        raise
    if failure is None:
        return batch[found]
    if failure.step != "open":
        raise_for(handle, failure)
    raise OSError(failure.errno, os.strerror(failure.errno), name)


def open_directory(handle: Handle, path: str) -> int:
    """Open a directory inside for reading; return a descriptor."""
    return open_inside(handle, path, _DIRECTORY)


def open_terminal(handle: Handle) -> tuple[int, int]:
    """Return the two ends of a pseudo-terminal of the container's /dev/pts, as
    :func:`os.openpty`.
    """
    return pty.open_pair(open_inside(handle, "/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY))


def read_regular(handle: Handle, path: str) -> str:
    """Return the text of a regular file, at most 8 MiB of it; "" if it is none or cannot be
    opened.
    """
    try:
        fd = open_inside(handle, path, _READ)
    except OSError:
        return ""
    try:
        is_regular = stat.S_ISREG(os.fstat(fd).st_mode)
        return os.read(fd, _REGULAR_MAX).decode("utf-8", "surrogateescape") if is_regular else ""
    finally:
        os.close(fd)


def make_directory(
    handle: Handle, path: Path, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False
) -> None:
    """Create a directory, as :meth:`pathlib.Path.mkdir`."""
    name = (
        os.path.normpath(os.path.join("/", os.fspath(path)))
        if os.path.isabs(path)
        else os.fspath(path).rstrip("/")
    )
    parent, last = os.path.split(name)
    try:
        directory = open_inside(handle, parent or ".", os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        if not parents or not parent:
            raise _error(errno.ENOENT, path) from None
        make_directory(handle, parent, parents=True, exist_ok=True)
        directory = open_inside(handle, parent, os.O_PATH | os.O_DIRECTORY)
    try:
        os.mkdir(last or ".", mode, dir_fd=directory)
    except FileExistsError:
        if not (exist_ok and _is_directory(handle, path)):
            raise _error(errno.EEXIST, path) from None
    finally:
        os.close(directory)


def _is_directory(handle: Handle, path: Path) -> bool:
    with contextlib.suppress(OSError):
        os.close(open_inside(handle, path, os.O_PATH | os.O_DIRECTORY))
        return True
    return False


def _error(number: int, path: Path) -> OSError:
    """Return the subclass of OSError for an error number, with the path as it was given."""
    return OSError(number, os.strerror(number), os.fspath(path))


def _open_file(handle: Handle, path: Path, flags: int) -> int:
    fd = open_inside(handle, path, flags, 0o666 if flags & os.O_CREAT else 0)
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode):
        os.close(fd)
        raise _error(errno.EISDIR, path)
    if stat.S_ISREG(mode):
        os.set_blocking(fd, True)
    return fd


def _read_available(fd: int) -> bytes:
    """Read a non-blocking descriptor to its end, until reading would wait, or up to 1 MiB."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while len(data) < _DEVICE_MAX and (part := os.read(fd, _DEVICE_MAX - len(data))):
            data += part
    return data


class Files:
    """The methods of :class:`~pytest_sandbox.Container` that read and write files.

    Paths are those inside; a relative one starts at the container's working directory. Files are
    opened with the rights of root inside. Each method raises :class:`ContainerStopped` unless the
    container runs and is not paused.
    """

    handle: Handle
    """The state of the container, for the plugin and the command line: not a public interface."""

    def read_bytes(self, path: Path) -> bytes:
        """Return the content of a file. Raises what :func:`open` would.

        Of a FIFO or a device, it returns what can be read without waiting, at most 1 MiB.
        """
        with open(_open_file(self.handle, path, _READ), "rb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file.read()
            return _read_available(file.fileno())

    def read_text(self, path: Path, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the content of a text file, with newlines translated as by :func:`open`.

        Raises what :func:`open` and :meth:`bytes.decode` would.
        """
        return io.TextIOWrapper(
            io.BytesIO(self.read_bytes(path)), encoding=encoding, errors=errors
        ).read()

    def write_bytes(self, path: Path, data: bytes) -> int:
        """Write a file, created or truncated; return the number of bytes.

        A new file has mode 0666 less the umask. Its directory must exist. Raises what :func:`open`
        would.
        """
        with open(_open_file(self.handle, path, _WRITE), "wb") as file:
            return file.write(data)

    def write_text(
        self, path: Path, data: str, encoding: str = "utf-8", errors: str = "strict"
    ) -> int:
        """Write a text file, created or truncated, with newlines as they are; return the number of
        characters.

        Its directory must exist. Raises what :func:`open` and :meth:`str.encode` would.
        """
        with open(
            _open_file(self.handle, path, _WRITE), "w", encoding=encoding, errors=errors, newline=""
        ) as file:
            return file.write(data)

    def exists(self, path: Path) -> bool:
        """Return whether the path exists; symbolic links are followed, inside."""
        try:
            os.close(open_inside(self.handle, path, os.O_PATH))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return False
        except OSError as error:
            if error.errno not in {errno.ELOOP, errno.ENAMETOOLONG}:
                raise
            return False
        return True

    def listdir(self, path: Path = ".") -> list[str]:
        """Return the names in a directory, sorted. Raises what :func:`os.listdir` would."""
        fd = open_directory(self.handle, os.fspath(path))
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def mkdir(
        self, path: Path, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False
    ) -> None:
        """Create a directory, with the arguments and errors of :meth:`pathlib.Path.mkdir`."""
        make_directory(self.handle, path, mode, parents=parents, exist_ok=exist_ok)

    def copy_in(self, source: Path, target: Path, *, owners: bool = False) -> None:
        """Copy a file, a link or a directory of the host to ``target`` inside, as ``docker cp``.

        If ``target`` is a directory, the copy is made in it. ``DIRECTORY/.`` copies the content of
        a directory. The copy belongs to the calling user; with ``owners`` (and root), to the UID
        and GID of the original. Raises OSError.
        """
        transfer.copy_in(self._open, source, target, owners=owners)

    def copy_out(self, source: Path, target: Path, *, owners: bool = False) -> None:
        """Copy a file or a directory inside to ``target`` on the host, as ``docker cp``.

        If ``target`` is a directory, the copy is made in it. ``DIRECTORY/.`` copies the content of
        a directory. A link that stays within the copied directory is copied as a link, another one
        as the file that it leads to inside. ``owners`` is as for :meth:`copy_in`. Raises OSError,
        also for a link to a directory outside of the copied one.
        """
        transfer.copy_out(self._open, source, target, owners=owners)

    def _open(self, path: Path, flags: int) -> int:
        return open_inside(self.handle, path, flags)
