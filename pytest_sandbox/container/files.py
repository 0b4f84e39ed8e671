"""Files inside: opened by the names that they have in there, by a child of this process that is in
there, so that no link leads to the host.

From a directory's descriptor on, every step down is one name with O_NOFOLLOW.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from typing import Any

from pytest_sandbox.container import transfer
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.linux.syscall_batch import SyscallBatch

__all__ = ["Files"]

__tracebackhide__ = (
    True  # pytest shows the line of the test that asked, not ours; --full-trace shows all
)

_READ = os.O_RDONLY
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_MOST_OF_A_DEVICE = 1 << 20
_NO_WAIT = os.O_NONBLOCK | os.O_NOCTTY

Path = str | os.PathLike[str]


class Files:
    """The methods of :class:`~pytest_sandbox.container.Container` that read and write files."""

    def _open(self: Any, path: Path, flags: int, mode: int = 0) -> int:
        """Open by the names inside, with the rights of root inside.

        The call is made by a child that shares this process's memory and descriptors, in the
        container's mount namespace but not in its PID namespace: nothing in the container sees it
        or can stop it, and in its /proc there is no "self" that would be this process.
        """
        name = os.fspath(path)
        place = os.fsencode(os.path.join(self.workdir, name))
        if b"\0" in place:
            raise ValueError("embedded null byte")
        batch = SyscallBatch()
        self.entrance().add_look(batch)
        # Never wait for the other end of a FIFO, never take a terminal, and never follow a magic
        # link of /proc.
        how = sc.open_how(
            flags if flags & os.O_PATH else flags | _NO_WAIT, sc.RESOLVE_NO_MAGICLINKS, mode
        )
        found = batch.open_as("open", place, how)
        try:
            with Deferred():
                failure = batch.try_in_child(sc.CLONE_FILES)
        except BaseException:  # of a signal handler, when it may run again
            batch.close_leaks()
            raise
        if failure is None:
            return batch[found]
        if failure.step != "open":
            self.raise_for(failure)
        raise OSError(failure.errno, os.strerror(failure.errno), name)

    def _open_file(self, path: Path, flags: int) -> int:
        fd = self._open(path, flags, 0o666 if flags & os.O_CREAT else 0)
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            os.close(fd)
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if stat.S_ISREG(mode):
            os.set_blocking(fd, True)
        return fd

    def read_plain(self, path: str, most: int = 8 << 20) -> str:
        """Return the text of a plain file, as far as ``most`` bytes; of anything else, and of what
        is not there, nothing.
        """
        try:
            fd = self._open(path, _READ)
        except OSError:
            return ""
        try:
            regular = stat.S_ISREG(os.fstat(fd).st_mode)
            return os.read(fd, most).decode("utf-8", "surrogateescape") if regular else ""
        finally:
            os.close(fd)

    def read_bytes(self, path: Path) -> bytes:
        """Return a file's content. Raises what :func:`open` would.

        Of a FIFO or a device it returns what can be read without waiting, at most 1 MiB.
        """
        with open(self._open_file(path, _READ), "rb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file.read()
            return _read_available(file.fileno())

    def read_text(self, path: Path, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return a file's content as text, with newlines as :func:`open` reads them."""
        return io.TextIOWrapper(
            io.BytesIO(self.read_bytes(path)), encoding=encoding, errors=errors
        ).read()

    def write_bytes(self, path: Path, data: bytes) -> int:
        """Write a file, made or truncated; returns the count of bytes. Its directory must be
        there.
        """
        with open(self._open_file(path, _WRITE), "wb") as file:
            return file.write(data)

    def write_text(
        self, path: Path, data: str, encoding: str = "utf-8", errors: str = "strict"
    ) -> int:
        """Write a file of text, made or truncated; returns the count of characters."""
        with open(
            self._open_file(path, _WRITE), "w", encoding=encoding, errors=errors, newline=""
        ) as file:
            return file.write(data)

    def exists(self, path: Path) -> bool:
        """Tell whether something is there, at a link's end."""
        try:
            os.close(self._open(path, os.O_PATH))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return False
        except OSError as error:
            if error.errno not in {errno.ELOOP, errno.ENAMETOOLONG}:
                raise
            return False
        return True

    def listdir(self, path: Path = ".") -> list[str]:
        """Return the names in a directory, sorted."""
        fd = self._open(path, _DIRECTORY)
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def mkdir(
        self, path: Path, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False
    ) -> None:
        """Make a directory, as :meth:`pathlib.Path.mkdir`."""
        name = (
            os.path.normpath(os.path.join("/", os.fspath(path)))
            if os.path.isabs(path)
            else os.fspath(path).rstrip("/")
        )
        parent, last = os.path.split(name)
        try:
            directory = self._open(parent or ".", os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            if not parents or not parent:
                raise FileNotFoundError(
                    errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path)
                ) from None
            self.mkdir(parent, parents=True, exist_ok=True)
            directory = self._open(parent, os.O_PATH | os.O_DIRECTORY)
        try:
            os.mkdir(last or ".", mode, dir_fd=directory)
        except FileExistsError:
            if not (exist_ok and self._is_directory(path)):
                raise FileExistsError(
                    errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path)
                ) from None
        finally:
            os.close(directory)

    def _is_directory(self, path: Path) -> bool:
        with contextlib.suppress(OSError):
            os.close(self._open(path, os.O_PATH | os.O_DIRECTORY))
            return True
        return False

    def copy_in(self, source: Path, target: Path) -> None:
        """Copy a file, a link or a directory of the host to ``target`` inside; into it, where it is
        a directory (as ``docker cp``).
        """
        transfer.copy_in(self._open, source, target)

    def copy_out(self, source: Path, target: Path) -> None:
        """Copy a file or a directory inside to ``target`` on the host; into it, where it is a
        directory (as ``docker cp``).

        ``DIRECTORY/.`` copies what is in the directory. A link is copied as a link where it stays
        in the copied directory, otherwise as the file that it leads to inside; one that leads to a
        directory elsewhere raises OSError.
        """
        transfer.copy_out(self._open, source, target)


def _read_available(fd: int) -> bytes:
    """Read a non-blocking descriptor up to its end, until reading would wait, or up to a bound."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while len(data) < _MOST_OF_A_DEVICE and (
            part := os.read(fd, _MOST_OF_A_DEVICE - len(data))
        ):
            data += part
    return data
