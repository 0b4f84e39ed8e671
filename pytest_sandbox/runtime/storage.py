"""Writable layers that are not in memory: a directory of a session's, or a file system in a file
there, whose size is a limit.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass

from pytest_sandbox.errors import UnsupportedError
from pytest_sandbox.linux import copying, loop, private_directory, userns
from pytest_sandbox.linux.removal import remove_tree

__all__ = [
    "MEMORY",
    "DiskLimitError",
    "Place",
    "explain",
    "fill",
    "make",
    "make_unfinished",
    "remove",
    "remove_unfinished",
]

_MKFS = "mkfs.ext4"
_IMAGE = "file-system"
_SEARCH = os.pathsep.join([os.defpath, "/usr/sbin", "/sbin"])
#: ``ID.PID``: a directory that the process PID is filling, or was when it died.
_UNFINISHED = re.compile(r"[^.]+(\.[0-9]+)+")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TRIES = 100
_OPTIONS = (
    "-q",
    "-m",
    "0",
    "-O",
    "^has_journal,^resize_inode",
    "-E",
    "lazy_itable_init=1,nodiscard",
)


class DiskLimitError(OSError):
    """A layer on disk cannot be limited here."""


@dataclass(slots=True)
class Place:
    """Where one layer lies: a directory, and where it is limited a block device, held by a
    descriptor until :meth:`release`.
    """

    directory: str | None = None
    device: str | None = None
    held: int = -1

    def release(self) -> None:
        """Let the device go: it is free again when nothing of it is mounted."""
        held, self.held = self.held, -1
        if held >= 0:
            os.close(held)

    def remove(self) -> None:
        """Release the device and remove the directory; what cannot be removed is left to the
        session's end.
        """
        self.release()
        if self.directory is not None:
            with suppress(OSError):
                remove_tree(self.directory)


MEMORY = Place()


def make(base: str, size: int | None, *, session: str, identity: str, lock: str) -> Place:
    """Make the place of a container's layer below ``base``; the session's lock file says where its
    directories are, for a sweep.
    """
    directory = os.path.join(base, session, identity)
    _note(lock, os.path.dirname(directory))
    private_directory.make_private(directory, below=base)
    if size is None:
        return Place(directory)
    try:
        device, held = _limited(os.path.join(directory, _IMAGE), size)
    except OSError as error:
        with suppress(OSError):
            remove_tree(directory)
        raise DiskLimitError(
            error.errno, f"{error.strerror}: {error.filename or 'loop device'}"
        ) from error
    return Place(directory, device, held)


def explain(error: BaseException, place: Place) -> None:
    """Raise :class:`UnsupportedError` for a layer's directory that the kernel does not take."""
    if (
        isinstance(error, OSError)
        and error.errno == errno.EINVAL
        and place.directory is not None
        and place.device is None
    ):
        where = os.path.dirname(os.path.dirname(place.directory))
        raise UnsupportedError(
            f'storage="disk" ({error.strerror})',
            f"{where} takes no writable layer, as where it lies on an overlay itself (docker's "
            "own root is one): set PYTEST_SANDBOX_HOME to a directory on "
            "another file system, such as a volume, or leave storage= out.",
        ) from error


def fill(place: Place, number: int, directory: str) -> None:
    """Begin an overlay of the layer with a copy of a directory."""
    assert place.directory is not None
    os.mkdir(f"{place.directory}/{number}", 0o700)
    source = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        copying.copy_tree(source, f"{place.directory}/{number}/upper")
    finally:
        os.close(source)


def remove(lock: str) -> None:
    """Remove the directories that a session has noted in its lock file.

    What can be removed is. Raises the first OSError, so that the caller keeps the lock file and a
    later cleanup tries again.
    """
    session = os.path.basename(lock).removesuffix(".lock")
    doomed = [
        directory
        for directory in _noted(lock)
        if os.path.basename(directory) == session and os.path.isdir(directory)
    ]
    if (
        doomed and not userns.has_capabilities()
    ):  # others inside, whose UIDs are the user's too, may have closed their directories to it
        with suppress(OSError):
            userns.call_with_capabilities(lambda: _remove_all(doomed))
    _remove_all(doomed)


def _remove_all(directories: list[str]) -> None:
    errors: list[OSError] = []
    for directory in directories:
        try:
            remove_tree(directory)
        except OSError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def make_unfinished(path: str) -> tuple[str, int]:
    """Make the directory ``PATH.PID`` (mode 0700), to be renamed to ``path`` once it is filled;
    return it and a descriptor that holds its lock.

    Close the descriptor after that: :func:`remove_unfinished` removes such directories whose lock
    (flock(2)) nobody holds. Raises OSError.
    """
    for attempt in range(_TRIES):
        unfinished = f"{path}.{os.getpid()}.{attempt}" if attempt else f"{path}.{os.getpid()}"
        os.mkdir(unfinished, 0o700)
        try:
            lock = os.open(unfinished, _DIRECTORY)
        except FileNotFoundError:  # a cleanup has removed what nobody held yet
            continue
        if _has_locked(lock, unfinished):
            return unfinished, lock
        os.close(lock)
    raise OSError(errno.EAGAIN, "its lock could not be taken", path)


def remove_unfinished(directory: str) -> None:
    """Remove from ``directory`` what processes that have died had begun (:func:`make_unfinished`).

    What can be removed is. Raises the first OSError.
    """
    locks: list[int] = []
    try:
        found = (
            [name for name in os.listdir(directory) if _UNFINISHED.fullmatch(name)]
            if os.path.isdir(directory)
            else []
        )
        free = [
            path
            for path in (os.path.join(directory, name) for name in found)
            if _is_free(path, locks)
        ]
        _remove_all(free)
    finally:
        for lock in locks:
            os.close(lock)


def _is_free(path: str, locks: list[int]) -> bool:
    """Take the lock of a directory unless somebody holds it."""
    try:
        lock = os.open(path, _DIRECTORY)
    except OSError:
        return False
    if _has_locked(lock, path):
        locks.append(lock)
        return True
    os.close(lock)
    return False


def _has_locked(fd: int, path: str) -> bool:
    """Lock a directory, and tell whether that was possible and it still has its name: another
    process may remove it in between.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except OSError:
        return False


def _noted(lock: str) -> list[str]:
    try:
        with open(lock, encoding="utf-8", errors="surrogateescape") as file:
            return [line for line in file.read().split("\n") if line]
    except FileNotFoundError:
        return []


def _note(lock: str, directory: str) -> None:
    if directory not in _noted(lock):
        with open(lock, "a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f"{directory}\n")


def _limited(image: str, size: int) -> tuple[str, int]:
    """Make an ext4 without a journal in a sparse file; returns a device of it and a descriptor that
    holds the device.
    """
    with open(image, "xb") as file:
        file.truncate(size)
    program = shutil.which(_MKFS, path=_SEARCH)
    if program is None:
        raise FileNotFoundError(errno.ENOENT, "there is no such program", _MKFS)
    made = subprocess.run(
        [program, *_OPTIONS, image],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise OSError(errno.EINVAL, f"mkfs.ext4 says {made.stderr.strip()!r}", image)
    return loop.attach(image)
