"""Writable layers that are not in memory: a folder of a session's, or a file system in a file there, whose size is a limit."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass

from pytest_sandbox.errors import UnsupportedError
from pytest_sandbox.linux import copying, loop, private_directory, userns

__all__ = ["MEMORY", "DiskLimitError", "Place", "explain", "fill", "make", "remove"]

_MKFS = "mkfs.ext4"
_IMAGE = "file-system"
_SEARCH = os.pathsep.join([os.defpath, "/usr/sbin", "/sbin"])
_OPTIONS = ("-q", "-m", "0", "-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard")


class DiskLimitError(OSError):
    """A layer on disk cannot be limited here."""


@dataclass(slots=True)
class Place:
    """Where one layer lies: a folder, and where it is limited a block device, held by a descriptor until :meth:`release`."""

    folder: str | None = None
    device: str | None = None
    held: int = -1

    def release(self) -> None:
        """Let the device go: it is free again when nothing of it is mounted."""
        held, self.held = self.held, -1
        if held >= 0:
            os.close(held)

    def remove(self) -> None:
        """Release the device and remove the folder."""
        self.release()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


MEMORY = Place()


def make(base: str, size: int | None, *, session: str, identity: str, lock: str) -> Place:
    """Make the place of a container's layer below ``base``; the session's lock file says where its folders are, for a sweep."""
    folder = os.path.join(base, session, identity)
    _note(lock, os.path.dirname(folder))
    private_directory.make_private(folder, below=base)
    if size is None:
        return Place(folder)
    try:
        device, held = _limited(os.path.join(folder, _IMAGE), size)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise DiskLimitError(error.errno, f"{error.strerror}: {error.filename or 'loop device'}") from error
    return Place(folder, device, held)


def explain(error: BaseException, place: Place) -> None:
    """Raise :class:`UnsupportedError` for a layer's folder that the kernel does not take."""
    if isinstance(error, OSError) and error.errno == errno.EINVAL and place.folder is not None and place.device is None:
        where = os.path.dirname(os.path.dirname(place.folder))
        raise UnsupportedError(
            f'storage="disk" ({error.strerror})',
            f"{where} takes no writable layer, as where it lies on an overlay itself (docker's own root is one): set PYTEST_SANDBOX_HOME to a folder on "
            "another file system, such as a volume, or leave storage= out.",
        ) from error


def fill(place: Place, number: int, folder: str) -> None:
    """Begin an overlay of the layer with a copy of a folder."""
    assert place.folder is not None
    os.mkdir(f"{place.folder}/{number}", 0o700)
    source = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        copying.copy_tree(source, f"{place.folder}/{number}/upper")
    finally:
        os.close(source)


def remove(lock: str) -> None:
    """Remove the folders that a session has noted in its lock file."""
    session = os.path.basename(lock).removesuffix(".lock")
    doomed = [folder for folder in _noted(lock) if os.path.basename(folder) == session and os.path.isdir(folder)]
    if doomed and not userns.has_power():  # others inside, whose numbers are the user's too, may have closed their folders to it
        with suppress(OSError):
            return userns.with_power(lambda: _remove_all(doomed))
    return _remove_all(doomed)


def _remove_all(folders: list[str]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _noted(lock: str) -> list[str]:
    try:
        with open(lock, encoding="utf-8", errors="surrogateescape") as file:
            return [line for line in file.read().split("\n") if line]
    except FileNotFoundError:
        return []


def _note(lock: str, folder: str) -> None:
    if folder not in _noted(lock):
        with open(lock, "a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f"{folder}\n")


def _limited(image: str, size: int) -> tuple[str, int]:
    """Make an ext4 without a journal in a sparse file; returns a device of it and a descriptor that holds the device."""
    with open(image, "xb") as file:
        file.truncate(size)
    program = shutil.which(_MKFS, path=_SEARCH)
    if program is None:
        raise FileNotFoundError(errno.ENOENT, "there is no such program", _MKFS)
    made = subprocess.run([program, *_OPTIONS, image], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if made.returncode:
        raise OSError(errno.EINVAL, f"mkfs.ext4 says {made.stderr.strip()!r}", image)
    return loop.attach(image)
