"""Check before the start that what the settings name exists: image, volumes, devices, user,
CPUs.
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
    from pytest_sandbox.settings.settings import Settings

__all__ = ["check"]

#: Bytes that are read of /etc/passwd and /etc/group.
_MAX_BYTES = 8 << 20


def check(settings: Settings) -> None:
    """Raise the error of :meth:`Container.start` for something that does not exist.

    Raises :class:`SettingsError` for a volume, a device or a user, :class:`ImageError`, and
    :class:`UnsupportedError` for CPUs that this host does not have and for settings that no host
    supports.
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
    """Look the user up in the image's files; if they cannot be read without a container, the start
    does it.
    """
    if rootfs.settings.user is None:
        return
    with suppress(_UnknownError):
        users.find(rootfs.settings.user, lambda path: _read(rootfs, path))


class _UnknownError(Exception):
    """The content of the file is not known before the container exists."""


def _read(rootfs: Rootfs, path: str) -> str:
    """Return a file of the topmost layer that has it, "" if none has; no link is followed."""
    covered = any(
        path == one.target or path.startswith(f"{one.target}/") for one in rootfs.settings.volumes
    )
    if covered or rootfs.above:
        raise _UnknownError
    for lower in rootfs.lower:
        with suppress(FileNotFoundError):
            directory = os.lstat(lower + os.path.dirname(path))
            status = os.lstat(lower + path)
            if stat.S_ISCHR(status.st_mode):  # a whiteout: the path does not exist (overlayfs)
                return ""
            if not (stat.S_ISDIR(directory.st_mode) and stat.S_ISREG(status.st_mode)):
                raise _UnknownError
            with open(lower + path, "rb") as file:
                return file.read(_MAX_BYTES).decode(errors="replace")
    return ""
