"""Files inside: opened by the names that they have in there, by a child of this process that is in there, so that no link leads to the host.

From a folder's descriptor on, every step down is one name with O_NOFOLLOW.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.program import Program

__all__ = ["Files"]

__tracebackhide__ = True  # pytest shows the line of the test that asked, not ours; --full-trace shows all

_READ = os.O_RDONLY
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_NO_WAIT = os.O_NONBLOCK | os.O_NOCTTY
_LINK = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

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
        program = Program()
        self.entrance().add_look(program)
        # Never wait for the other end of a FIFO, never take a terminal, and never follow a magic link of /proc.
        how = sc.open_how(flags if flags & os.O_PATH else flags | _NO_WAIT, sc.RESOLVE_NO_MAGICLINKS, mode)
        found = program.add("open", "openat2", -100, place, how, len(how))
        failure = program.try_in_child(sc.CLONE_FILES)
        if failure is None:
            return program[found]
        if failure.step != "open":
            self.raise_for(failure)
        raise OSError(failure.errno, os.strerror(failure.errno), name)

    def _open_file(self, path: Path, flags: int) -> int:
        fd = self._open(path, flags, 0o666 if flags & os.O_CREAT else 0)
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            os.close(fd)
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if stat.S_ISREG(mode) or not flags & os.O_WRONLY:
            os.set_blocking(fd, True)
        return fd

    def read_plain(self, path: str, most: int = 8 << 20) -> str:
        """Return the text of a plain file, as far as ``most`` bytes; of anything else, and of what is not there, nothing."""
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
        """Return a file's content. Raises what :func:`open` would."""
        with open(self._open_file(path, _READ), "rb") as file:
            return file.read()

    def read_text(self, path: Path, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return a file's content as text."""
        with open(self._open_file(path, _READ), encoding=encoding, errors=errors) as file:
            return file.read()

    def write_bytes(self, path: Path, data: bytes) -> int:
        """Write a file, made or truncated; returns the count of bytes. Its folder must be there."""
        with open(self._open_file(path, _WRITE), "wb") as file:
            return file.write(data)

    def write_text(self, path: Path, data: str, encoding: str = "utf-8", errors: str = "strict") -> int:
        """Write a file of text, made or truncated; returns the count of characters."""
        with open(self._open_file(path, _WRITE), "w", encoding=encoding, errors=errors, newline="") as file:
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
        """Return the names in a folder, sorted."""
        fd = self._open(path, _FOLDER)
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def mkdir(self, path: Path, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a folder, as :meth:`pathlib.Path.mkdir`."""
        name = os.path.normpath(os.path.join("/", os.fspath(path))) if os.path.isabs(path) else os.fspath(path).rstrip("/")
        parent, last = os.path.split(name)
        try:
            folder = self._open(parent or ".", os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            if not parents or not parent:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path)) from None
            self.mkdir(parent, parents=True, exist_ok=True)
            folder = self._open(parent, os.O_PATH | os.O_DIRECTORY)
        try:
            os.mkdir(last or ".", mode, dir_fd=folder)
        except FileExistsError:
            if not (exist_ok and self._is_folder(path)):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path)) from None
        finally:
            os.close(folder)

    def _is_folder(self, path: Path) -> bool:
        with contextlib.suppress(OSError):
            os.close(self._open(path, os.O_PATH | os.O_DIRECTORY))
            return True
        return False

    def copy_in(self, source: Path, target: Path) -> None:
        """Copy a file, a link or a folder of the host to ``target`` inside; into it, where it is a folder (as ``docker cp``)."""
        os.lstat(source)  # what is not there is said by the name that was given
        source = os.path.abspath(os.fspath(source))
        folder, name = self._place(target, os.path.basename(source))
        try:
            _copy(os.path.dirname(source), os.path.basename(source), folder, name)
        finally:
            os.close(folder)

    def _place(self, target: Path, name: str) -> tuple[int, str]:
        """Return the descriptor of the folder that is copied into, and the name there."""
        try:
            return self._open(target, _FOLDER), name
        except (FileNotFoundError, NotADirectoryError):
            parent, last = os.path.split(os.fspath(target).rstrip("/"))
            return self._open(parent or ".", _FOLDER), last

    def copy_out(self, source: Path, target: Path) -> None:
        """Copy a file, a link or a folder inside to ``target`` on the host; into it, where it is a folder. Links are copied as links.

        ``FOLDER/.`` copies what is in the folder, as ``docker cp``.
        """
        folder, name = self._found(os.fspath(source))
        into, as_name = (os.fspath(target), name) if os.path.isdir(target) else os.path.split(os.path.abspath(os.fspath(target)))
        try:
            _copy(folder, name, into, as_name or ".")
        finally:
            os.close(folder)

    def _found(self, source: str) -> tuple[int, str]:
        """Return the descriptor of the folder that holds ``source``, and the name there, "." for a folder's content ("FOLDER/.")."""
        parent, name = (source, ".") if source.endswith("/.") else os.path.split(os.path.normpath(source))
        try:
            folder = self._open(parent or ".", _FOLDER)
            with _closed_on_error(folder):
                os.stat(name or ".", dir_fd=folder, follow_symlinks=False)
        except OSError as error:  # said by the name that was given
            raise OSError(error.errno, error.strerror, source) from None
        return folder, name or "."


@contextlib.contextmanager
def _closed_on_error(fd: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(fd)
        raise


def _opened(folder: int | str, flags: int) -> int:
    return os.dup(folder) if isinstance(folder, int) else os.open(folder, flags | os.O_CLOEXEC)


def _copy(source: int | str, name: str, target: int | str, as_name: str) -> None:
    """Copy one entry of the folder ``source`` to the folder ``target``, each a descriptor or a trusted path; one name at a time."""
    from_, to = _opened(source, _FOLDER), _opened(target, _FOLDER)
    try:
        _copy_entry(from_, name, to, as_name)
    finally:
        os.close(from_)
        os.close(to)


def _copy_entry(source: int, name: str, target: int, as_name: str) -> None:
    status = os.stat(name, dir_fd=source, follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), as_name, dir_fd=target)
        return
    if stat.S_ISDIR(status.st_mode):
        _copy_folder(source, name, target, as_name, status)
        return
    if not stat.S_ISREG(status.st_mode):
        return  # a socket, a FIFO or a device means nothing elsewhere
    from_ = os.open(name, _READ | _LINK, dir_fd=source)
    with open(from_, "rb") as read:
        to = os.open(as_name, _WRITE | _LINK, 0o600, dir_fd=target)
        with open(to, "wb") as write:
            shutil.copyfileobj(read, write, 1 << 20)
            os.fchmod(to, stat.S_IMODE(status.st_mode) & 0o777)
            write.flush()
            os.utime(to, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_folder(source: int, name: str, target: int, as_name: str, status: os.stat_result) -> None:
    from_ = os.open(name, _FOLDER | _LINK, dir_fd=source)
    try:
        made = _made(target, as_name)
        to = os.open(as_name, _FOLDER | _LINK, dir_fd=target)
        try:
            for entry in os.listdir(from_):
                _copy_entry(from_, entry, to, entry)
            if made:  # a folder that was there before keeps its mode
                os.fchmod(to, stat.S_IMODE(status.st_mode) & 0o777)
        finally:
            os.close(to)
    finally:
        os.close(from_)


def _made(folder: int, name: str) -> bool:
    try:
        os.mkdir(name, 0o700, dir_fd=folder)
    except FileExistsError:
        return False
    return True
