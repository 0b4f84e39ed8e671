"""Open file descriptors of this process: list, inspect and reopen them.

See fcntl(2) and proc_pid_fd(5).
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress

__all__ = ["is_writable", "open_fds", "path_of", "reopen"]

_DIRECTORY = "/proc/self/fd"
_TYPES_WITH_PATH = {stat.S_IFREG, stat.S_IFDIR, stat.S_IFBLK, stat.S_IFIFO}
_PRESERVED_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_DIRECTORY | os.O_PATH
_MAX_COPIED = 1 << 20


def open_fds() -> list[int]:
    """Return the open descriptors of this process."""
    return [int(name) for name in os.listdir(_DIRECTORY)]


def is_writable(fd: int, *, only: bool = False) -> bool:
    """Return whether a descriptor is open for writing; with ``only``, for writing only."""
    mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    return mode == os.O_WRONLY or (mode == os.O_RDWR and not only)


def path_of(fd: int, mode: int) -> str:
    """Return the path of the file that ``fd`` refers to, of type ``mode`` (st_mode).

    It is "" for files without a path, such as sockets, pipes and memfds.
    """
    if stat.S_IFMT(mode) not in _TYPES_WITH_PATH:
        return ""
    path = os.readlink(f"{_DIRECTORY}/{fd}")
    return path if path.startswith("/") and not path.startswith("/memfd:") else ""


def reopen(fd: int, path: str) -> None:
    """Replace ``fd`` by a descriptor of ``path`` in the root of this process, at the same position.

    If the same file is not there, a small regular file is replaced by a copy in memory, and any
    other by /dev/null.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & _PRESERVED_FLAGS
    try:
        new = os.open(path, flags | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        os.set_blocking(new, True)
        if not _is_same_file(fd, new):
            os.close(new)
            new = _copy_in_memory(fd)
    except OSError:
        new = _copy_in_memory(fd)
    with suppress(OSError):  # a directory has no position
        os.lseek(new, os.lseek(fd, 0, os.SEEK_CUR), os.SEEK_SET)
    os.dup2(new, fd, inheritable=os.get_inheritable(fd))
    os.close(new)


def _is_same_file(one: int, other: int) -> bool:
    found = [os.fstat(fd) for fd in (one, other)]
    if stat.S_ISDIR(found[0].st_mode):
        return stat.S_ISDIR(found[1].st_mode)
    first, second = ((one.st_mode, one.st_size, one.st_mtime_ns) for one in found)
    return stat.S_ISREG(found[0].st_mode) and first == second


def _copy_in_memory(fd: int) -> int:
    try:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_size <= _MAX_COPIED:
            content = os.pread(fd, _MAX_COPIED, 0)
            copy = os.memfd_create("copy", os.MFD_CLOEXEC)
            os.write(copy, content)
            return copy
    except OSError:  # not open for reading
        pass
    return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
