"""Removal of what killed sessions have left: cgroups, lock files, directories.

Every new session starts with it. A session has ended when its locks (flock(2)) can be taken: that
of its lock file in the state directory, and those of its cgroups. The locks of cgroups are the same
in every namespace and chroot. A process with another state directory (another user's, an outer
container's, a chroot's) does not know the lock file: it removes only cgroups that are empty.
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

__all__ = ["lock_path", "remove_leftovers", "session_directory", "sessions", "state_directory"]

#: Seconds for the killed processes of an ended session to end.
_KILL_TIMEOUT = 2.0
#: Seconds for which an empty lock file is left alone.
_START_TIMEOUT = 2.0


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
    """Return the path of a session's lock file, which is locked while its launcher runs."""
    return f"{session_directory(session)}.lock"


def remove_leftovers() -> list[str]:
    """Remove what belongs to sessions that have ended; return their names.

    An error is logged, and the next session tries again.
    """
    state_directory()  # without one it cannot be known which sessions have ended
    cgroups = cgroup.find_hierarchy().sessions()
    names = sorted({*sessions(), *cgroups})
    removed = [name for name in names if _try_remove(name, cgroups.get(name, ()))]
    for saved in private_directory.private_ones([os.path.join(paths.images(), "kept")]):
        try:
            storage.remove_unfinished(saved)
        except OSError as error:
            _log(saved, error)
    return removed


def _try_remove(session: str, cgroups: tuple[str, ...]) -> bool:
    try:
        return _remove_if_ended(session, cgroups)
    except Exception as error:  # noqa: BLE001 - no error may keep a new session from starting
        _log(session, error)
        return False


def _log(name: str, error: Exception) -> None:
    import logging

    logging.getLogger("pytest_sandbox").warning(
        "cleanup of %s failed, the next session tries again: %s: %s",
        name,
        type(error).__name__,
        error,
    )


def _remove_if_ended(session: str, cgroups: tuple[str, ...]) -> bool:
    path = lock_path(session)
    if not os.path.exists(path):
        # A client may create the directory of a session that another process has just removed.
        shutil.rmtree(session_directory(session), ignore_errors=True)
        return cgroup.remove_unowned(cgroups)
    lock = file_lock.try_lock(path)
    if lock is None:
        return False
    try:
        return not _is_starting(lock) and _remove(session, path, cgroups)
    finally:
        os.close(lock)


def _is_starting(lock: int) -> bool:
    """Return whether the file is new and empty: a starting session is about to lock it and then to
    write to it.
    """
    status = os.fstat(lock)
    return not status.st_size and time.time() - status.st_mtime < _START_TIMEOUT


def _remove(session: str, path: str, cgroups: tuple[str, ...]) -> bool:
    held = cgroup.lock_unowned(cgroups)
    if held is None:
        return False
    try:
        cgroup.destroy(held, _KILL_TIMEOUT)
    finally:
        for fd in held.values():
            os.close(fd)
    storage.remove(path)
    shutil.rmtree(session_directory(session), ignore_errors=True)
    with suppress(FileNotFoundError):
        os.unlink(path)
    return True
