"""Writable layers on disk: a directory of the session, or, with a size limit, a file system in a
file there.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass

from pytest_sandbox.errors import UnsupportedError
from pytest_sandbox.linux import copying, file_lock, loop, private_directory, userns
from pytest_sandbox.linux.removal import remove_tree
from pytest_sandbox.runtime.protocol import ErrorCode
from pytest_sandbox.runtime.step_error import StepError

__all__ = [
    "MEMORY",
    "Place",
    "fill",
    "make",
    "make_unfinished",
    "raise_if_unsupported",
    "remove",
    "remove_unfinished",
]

_MKFS = "mkfs.ext4"
_IMAGE = "file-system"
_SEARCH = os.pathsep.join([os.defpath, "/usr/sbin", "/sbin"])
#: ``ID.PID``: a directory that the process PID is filling, or was filling when it was killed.
_UNFINISHED = re.compile(r"[^.]+(\.[0-9]+)+")
_TRIES = 100
#: The file system is thrown away, so it needs no journal, no room to grow and no blocks reserved
#: for root; its inode tables are written when they are used (mke2fs(8)).
_MKFS_OPTIONS = (
    "-q",
    "-m",
    "0",
    "-O",
    "^has_journal,^resize_inode",
    "-E",
    "lazy_itable_init=1,nodiscard",
)


@dataclass(slots=True)
class Place:
    """The place of one writable layer: nothing for one in memory, else a directory, and a block
    device if its size is limited.
    """

    directory: str | None = None
    device: str | None = None
    #: Keeps the loop device attached until it is mounted; -1 without one.
    device_fd: int = -1

    def release(self) -> None:
        """Close the device: the kernel detaches it when it is unmounted (LO_FLAGS_AUTOCLEAR of
        loop(4)).
        """
        fd, self.device_fd = self.device_fd, -1
        if fd >= 0:
            os.close(fd)

    def remove(self) -> None:
        """Release the device, and remove the directory; the end of the session removes what cannot
        be removed now.
        """
        self.release()
        if self.directory is not None:
            with suppress(OSError):
                remove_tree(self.directory)


MEMORY = Place()


def make(base: str, size: int | None, *, session: str, identity: str, lock: str) -> Place:
    """Make the place of a container's layer below ``base``, with a limit of ``size`` bytes if any.

    The session's lock file lists the directories that a cleanup has to remove. Raises
    :class:`StepError` if the size cannot be limited.
    """
    directory = os.path.join(base, session, identity)
    _add_to_list(lock, os.path.dirname(directory))
    private_directory.make_private(directory, below=base)
    if size is None:
        return Place(directory)
    try:
        device, fd = _make_file_system(os.path.join(directory, _IMAGE), size)
    except OSError as error:
        with suppress(OSError):
            remove_tree(directory)
        raise StepError(
            "limit the disk",
            error.errno,
            f"{error.strerror}: {error.filename or 'loop device'}",
            code=ErrorCode.DISK_LIMIT_UNAVAILABLE,
        ) from error
    return Place(directory, device, fd)


def raise_if_unsupported(error: BaseException, place: Place) -> None:
    """Raise :class:`UnsupportedError` if the layer's directory is why a container was not created.

    overlayfs refuses an upper directory on some file systems, such as another overlay, by EINVAL.
    """
    if (
        isinstance(error, OSError)
        and error.errno == errno.EINVAL
        and place.directory is not None
        and place.device is None
    ):
        where = os.path.dirname(os.path.dirname(place.directory))
        raise UnsupportedError(
            f'storage="disk" ({error.strerror})',
            f"{where} cannot hold a writable layer; an overlay (such as the root of a docker "
            "container) never can. Set PYTEST_SANDBOX_HOME to a directory on another file "
            "system, such as a volume, or leave storage= out.",
        ) from error


def fill(place: Place, number: int, directory: str) -> None:
    """Copy a directory into the layer of the overlay ``number``."""
    assert place.directory is not None
    os.mkdir(f"{place.directory}/{number}", 0o700)
    source = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        copying.copy_tree(source, f"{place.directory}/{number}/upper")
    finally:
        os.close(source)


def remove(lock: str) -> None:
    """Remove the directories that are listed in a session's lock file.

    Removes as much as it can, and raises the first OSError, so that the caller keeps the lock file
    and a later cleanup tries again.
    """
    session = os.path.basename(lock).removesuffix(".lock")
    doomed = [
        directory
        for directory in _listed(lock)
        if os.path.basename(directory) == session and os.path.isdir(directory)
    ]
    if doomed and not userns.has_capabilities():
        # Files owned by mapped UIDs: only root of a user namespace with the same mapping may
        # delete them.
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
    return its path and a descriptor that locks it.

    Close the descriptor after the rename: :func:`remove_unfinished` removes such directories that
    nobody has locked (flock(2)). Raises OSError.
    """
    for attempt in range(_TRIES):
        unfinished = f"{path}.{os.getpid()}.{attempt}" if attempt else f"{path}.{os.getpid()}"
        os.mkdir(unfinished, 0o700)
        lock = file_lock.try_lock(unfinished)
        if lock is not None:  # else a cleanup locked it first, and removed it
            return unfinished, lock
    raise OSError(errno.EAGAIN, "the directory could not be locked", path)


def remove_unfinished(directory: str) -> None:
    """Remove from ``directory`` what killed processes left unfinished (:func:`make_unfinished`).

    Removes as much as it can, and raises the first OSError.
    """
    if not os.path.isdir(directory):
        return
    with os.scandir(directory) as entries:
        paths = [
            entry.path
            for entry in entries
            if _UNFINISHED.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        ]
    locks: dict[str, int] = {}
    try:
        for path in paths:
            if (lock := file_lock.try_lock(path)) is not None:
                locks[path] = lock
        _remove_all(list(locks))
    finally:
        for lock in locks.values():
            os.close(lock)


def _listed(lock: str) -> list[str]:
    try:
        with open(lock, encoding="utf-8", errors="surrogateescape") as file:
            return [line for line in file.read().split("\n") if line]
    except FileNotFoundError:
        return []


def _add_to_list(lock: str, directory: str) -> None:
    if directory not in _listed(lock):
        with open(lock, "a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f"{directory}\n")


def _make_file_system(image: str, size: int) -> tuple[str, int]:
    """Make an ext4 file system in a sparse file; return its loop device, and a descriptor of it."""
    with open(image, "xb") as file:
        file.truncate(size)
    program = shutil.which(_MKFS, path=_SEARCH)
    if program is None:
        raise FileNotFoundError(errno.ENOENT, "no such program", _MKFS)
    made = subprocess.run(
        [program, *_MKFS_OPTIONS, image],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise OSError(errno.EINVAL, f"{_MKFS}: {made.stderr.strip()}", image)
    return loop.attach(image)
