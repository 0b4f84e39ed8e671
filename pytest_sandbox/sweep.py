"""What a killed session left behind: its groups, its lock, its folders; removed by the next session."""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress

from pytest_sandbox import folders, layers
from pytest_sandbox.linux import cgroup

__all__ = ["lock_path", "state_folder", "sweep"]


def state_folder() -> str:
    """Return the folder of the sessions' locks, made if it is not there."""
    folder = folders.state()
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    status = os.lstat(folder)
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(13, "belongs to somebody else, or others may write there: remove it", folder)
    return folder


def lock_path(session: str) -> str:
    """Return the path of a session's lock; it is held (flock(2)) while the session's launcher lives."""
    return os.path.join(state_folder(), f"{session}.lock")


def sweep() -> list[str]:
    """Remove what belongs to sessions that nobody holds any more; returns their names."""
    found = cgroup.Hierarchy.find().sessions()
    folder = state_folder()
    known = {name.removesuffix(".lock") for name in os.listdir(folder)}
    return [name for name in sorted(known | set(found)) if _sweep_one(name, found.get(name, ()))]


def _sweep_one(session: str, groups: tuple[str, ...]) -> bool:
    try:
        lock = os.open(lock_path(session), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        shutil.rmtree(os.path.join(state_folder(), session), ignore_errors=True)  # made by a client while its dead session was swept
        return _remove_empty(groups)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        cgroup.destroy(groups)
        layers.remove(lock_path(session))
        shutil.rmtree(os.path.join(state_folder(), session), ignore_errors=True)
        with suppress(FileNotFoundError):
            os.unlink(lock_path(session))
        return True
    finally:
        os.close(lock)


def _remove_empty(groups: tuple[str, ...]) -> bool:
    """Remove groups whose owner has no lock here; one with processes is somebody's of another container, and stays."""
    removed = False
    for path in (path for group in groups for path in cgroup.below(group)):
        with suppress(OSError):
            os.rmdir(path)
            removed = True
    return removed
