"""This process's open files, as proc(5) and fcntl(2) tell of them."""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress

__all__ = ["is_writable", "names_a_file", "open_again", "opened"]

_DIRECTORY = "/proc/self/fd"
_OPENED_BY_PATH = {stat.S_IFREG, stat.S_IFDIR, stat.S_IFBLK, stat.S_IFIFO}
_KEPT_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_DIRECTORY | os.O_PATH
_MOST_COPIED = 1 << 20


def opened() -> list[int]:
    """Return the open descriptors."""
    return [int(name) for name in os.listdir(_DIRECTORY)]


def is_writable(fd: int, *, only: bool = False) -> bool:
    """Tell whether a descriptor is open for writing; with ``only``, for nothing else."""
    mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    return mode == os.O_WRONLY or (mode == os.O_RDWR and not only)


def names_a_file(fd: int, mode: int) -> str:
    """Return the path that ``fd`` was opened by, or "" for a socket, a pipe, a file in memory and
    the like.
    """
    if stat.S_IFMT(mode) not in _OPENED_BY_PATH:
        return ""
    path = os.readlink(f"{_DIRECTORY}/{fd}")
    return path if path.startswith("/") and not path.startswith("/memfd:") else ""


def open_again(fd: int, path: str) -> None:
    """Replace ``fd`` by the same file as this process's root has it, at the same position.

    Where there is none, a small one becomes a copy in memory, and others are as ``/dev/null``.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & _KEPT_FLAGS
    try:
        new = os.open(path, flags | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        os.set_blocking(new, True)
        if not _are_alike(fd, new):
            os.close(new)
            new = _copied(fd)
    except OSError:
        new = _copied(fd)
    with suppress(OSError):  # a directory has no position
        os.lseek(new, os.lseek(fd, 0, os.SEEK_CUR), os.SEEK_SET)
    os.dup2(new, fd, inheritable=os.get_inheritable(fd))
    os.close(new)


def _are_alike(one: int, other: int) -> bool:
    found = [os.fstat(fd) for fd in (one, other)]
    if stat.S_ISDIR(found[0].st_mode):
        return stat.S_ISDIR(found[1].st_mode)
    first, second = ((one.st_mode, one.st_size, one.st_mtime_ns) for one in found)
    return stat.S_ISREG(found[0].st_mode) and first == second


def _copied(fd: int) -> int:
    try:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_size <= _MOST_COPIED:
            content = os.pread(fd, _MOST_COPIED, 0)
            copy = os.memfd_create("copy", os.MFD_CLOEXEC)
            os.write(copy, content)
            return copy
    except OSError:  # not open for reading
        pass
    return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
