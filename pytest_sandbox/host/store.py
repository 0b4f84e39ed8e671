"""Directories that this user needs: of running sessions, and of images."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

from pytest_sandbox import paths
from pytest_sandbox.linux import overlay, private_directory

if TYPE_CHECKING:
    from pytest_sandbox.host.trial import Trial

__all__ = ["remedy_for_state", "remedy_for_store", "try_state", "try_store"]


def _try_writing(path: str) -> str:
    """Write into the directory, or the nearest one above it that exists."""
    existing = _existing(path)
    with tempfile.TemporaryFile(dir=existing):
        pass
    free = os.statvfs(existing)
    return f"{path}, {free.f_bavail * free.f_frsize / (1 << 30):.1f} GiB free"


def _existing(path: str) -> str:
    while not os.path.isdir(path):
        path = os.path.dirname(path) or "/"
    return path


def try_store() -> str:
    """Write where images are kept, and mark a deletion there."""
    said = _try_writing(paths.images())
    with tempfile.TemporaryDirectory(dir=_existing(paths.images())) as directory:
        overlay.make_whiteout(f"{directory}/deleted")
    return said


def remedy_for_store(_trial: Trial) -> str:
    """Return what gives this user a store."""
    return (
        "Set PYTEST_SANDBOX_HOME to a directory where this user may write, and which is not on an "
        "overlay as docker's own root is (a volume, or below "
        f"/dev/shm): {paths.images()} is not one."
    )


def try_state() -> str:
    """Write where the sessions' locks are."""
    return _try_writing(private_directory.first_usable(paths.states()))


def remedy_for_state(_trial: Trial) -> str:
    """Return what gives this user a directory for sessions."""
    return paths.NO_STATE
