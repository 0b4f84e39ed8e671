"""Folders that this user needs: of running sessions, and of images."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

from pytest_sandbox import folders

if TYPE_CHECKING:
    from pytest_sandbox.host.trial import Trial

__all__ = ["remedy_for_state", "remedy_for_store", "try_state", "try_store"]


def _try_writing(path: str) -> str:
    """Write into the folder, or the nearest one above it that exists."""
    existing = path
    while not os.path.isdir(existing):
        existing = os.path.dirname(existing) or "/"
    with tempfile.TemporaryFile(dir=existing):
        pass
    free = os.statvfs(existing)
    return f"{path}, {free.f_bavail * free.f_frsize / (1 << 30):.1f} GiB free"


def try_store() -> str:
    """Write where images are kept."""
    return _try_writing(folders.images())


def remedy_for_store(_trial: Trial) -> str:
    """Return what gives this user a store."""
    return f"Set PYTEST_SANDBOX_HOME to a folder where this user may write: {folders.images()} is not one."


def try_state() -> str:
    """Write where the sessions' locks are."""
    return _try_writing(folders.state())


def remedy_for_state(_trial: Trial) -> str:
    """Return what gives this user a folder for sessions."""
    return f"Set XDG_RUNTIME_DIR to a folder where only this user may write, as a login with systemd does: {folders.state()} is not one."
