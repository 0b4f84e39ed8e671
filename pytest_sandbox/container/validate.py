"""What the settings of a container name, looked up before it is made: image, volumes, devices,
user, CPUs.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.container.build_spec import spec_of
from pytest_sandbox.container.rootfs import Rootfs
from pytest_sandbox.errors import UnsupportedError
from pytest_sandbox.linux import cpus
from pytest_sandbox.runtime import users

if TYPE_CHECKING:
    from pytest_sandbox.settings import Settings

__all__ = ["check"]

_MOST_BYTES = 8 << 20


def check(settings: Settings) -> None:
    """Raise what starting a container would for what the settings name.

    Raises :class:`SettingsError` for a volume, a device or a user that does not exist,
    :class:`ImageError`, and :class:`UnsupportedError` for CPUs that this host does not have.
    """
    rootfs = Rootfs(settings)
    try:
        spec_of(rootfs, has_user_namespace=True)
        _check_cpus(settings)
        _check_user(rootfs)
    finally:
        rootfs.release()


def _check_cpus(settings: Settings) -> None:
    if settings.cpuset is None:
        return
    online = cpus.online()
    if not cpus.parse(settings.cpuset) <= cpus.parse(online):
        raise UnsupportedError(
            f"cpuset={settings.cpuset!r}", f"The CPUs of this host are {online}."
        )


def _check_user(rootfs: Rootfs) -> None:
    """Look the user up in the image's own files; one that cannot be read without a container is
    left to the start.
    """
    if rootfs.settings.user is None:
        return
    with suppress(_UnknownError):
        users.find(rootfs.settings.user, lambda path: _read(rootfs, path))


class _UnknownError(Exception):
    """What the file holds is not known before the container is made."""


def _read(rootfs: Rootfs, path: str) -> str:
    """Return a file of the topmost layer that has it, "" where none has; no link is followed."""
    covered = any(
        path == one.target or path.startswith(f"{one.target}/") for one in rootfs.settings.volumes
    )
    if covered or rootfs.above:
        raise _UnknownError
    for lower in rootfs.lower:
        with suppress(FileNotFoundError):
            directory = os.lstat(lower + os.path.dirname(path))
            status = os.lstat(lower + path)
            if stat.S_ISCHR(status.st_mode):  # a whiteout of overlayfs
                return ""
            if not (stat.S_ISDIR(directory.st_mode) and stat.S_ISREG(status.st_mode)):
                raise _UnknownError
            with open(lower + path, "rb") as file:
                return file.read(_MOST_BYTES).decode(errors="replace")
    return ""
