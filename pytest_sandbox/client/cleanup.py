"""Cleanup: remove what a killed session has left behind (cgroups, lock, directories). Every new
session starts with it.

A session has ended when its locks can be taken: the lock file in the state directory, and that of
each of its cgroups. Who has another state directory (another user, an outer container, a chroot)
sees the cgroups alone, and removes them only where they are empty.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress

from pytest_sandbox import paths
from pytest_sandbox.errors import SetupError
from pytest_sandbox.linux import cgroup, file_lock, private_directory
from pytest_sandbox.runtime import storage

__all__ = ["lock_path", "session_directory", "sessions", "state_directory", "sweep"]

#: Seconds for the processes of a session that has ended to die.
_PATIENCE = 2.0
#: Seconds for which an empty lock file is left alone.
_NEW = 2.0


def state_directory() -> str:
    """Return the directory of new sessions' locks and sockets, created if it does not exist.

    Raises :class:`SetupError` if none of :func:`paths.states` can be used.
    """
    try:
        return private_directory.first_usable(paths.states())
    except OSError as error:
        raise SetupError("state directory", str(error.strerror), paths.NO_STATE) from error


def sessions() -> dict[str, str]:
    """Return the path without suffix of each session's lock, by the session's name.

    All directories that may be the state directory are read: the first one may have been full or
    read-only when a session began.
    """
    return {
        name.removesuffix(".lock"): os.path.join(directory, name.removesuffix(".lock"))
        for directory in reversed(private_directory.private_ones(paths.states()))
        for name in os.listdir(directory)
    }


def session_directory(session: str) -> str:
    """Return the path of a session's directory, which need not exist."""
    return sessions().get(session) or os.path.join(state_directory(), session)


def lock_path(session: str) -> str:
    """Return the path of a session's lock; it is held (flock(2)) while the session's launcher
    lives.
    """
    return f"{session_directory(session)}.lock"


def sweep() -> list[str]:
    """Remove what belongs to sessions that have ended; return their names. What cannot be removed
    is logged, and tried again by the next.
    """
    state_directory()  # without one nobody can tell which sessions have ended
    found = cgroup.find_hierarchy().sessions()
    removed = [name for name in sorted({*sessions(), *found}) if _try(name, found.get(name, ()))]
    kept = os.path.join(paths.images(), "kept")
    try:
        storage.remove_unfinished(kept)
    except OSError as error:
        _report(kept, error)
    return removed


def _try(session: str, groups: tuple[str, ...]) -> bool:
    try:
        return _sweep_one(session, groups)
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not stop a new session
        _report(session, error)
        return False


def _report(what: str, error: Exception) -> None:
    import logging

    logging.getLogger("pytest_sandbox").warning(
        "cleanup of %s failed, the next session tries again: %s: %s",
        what,
        type(error).__name__,
        error,
    )


def _sweep_one(session: str, groups: tuple[str, ...]) -> bool:
    path = lock_path(session)
    if not os.path.exists(path):
        # The client of a session that was removed meanwhile may have made it.
        shutil.rmtree(session_directory(session), ignore_errors=True)
        return cgroup.remove_unowned(groups)
    lock = file_lock.try_lock(path)
    if lock is None:
        return False
    try:
        return not _is_new(lock) and _remove(session, path, groups)
    finally:
        os.close(lock)


def _is_new(lock: int) -> bool:
    """Whether a session may be about to lock it, which then writes to it: it would find out, and
    start again with another file.
    """
    status = os.fstat(lock)
    return not status.st_size and time.time() - status.st_mtime < _NEW


def _remove(session: str, path: str, groups: tuple[str, ...]) -> bool:
    held = cgroup.lock_unowned(groups)
    if held is None:
        return False
    try:
        cgroup.destroy(held, _PATIENCE)
    finally:
        for fd in held.values():
            os.close(fd)
    storage.remove(path)
    shutil.rmtree(session_directory(session), ignore_errors=True)
    with suppress(FileNotFoundError):
        os.unlink(path)
    return True
