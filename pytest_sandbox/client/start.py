"""The start of a launcher's process, with its session's locks."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from pytest_sandbox.client import cleanup
from pytest_sandbox.linux import file_lock

if TYPE_CHECKING:
    from pytest_sandbox.linux.cgroup import Hierarchy
    from pytest_sandbox.runtime.protocol import Channel

__all__ = ["start_launcher"]

_PROGRAM = (
    "import sys; sys.path.insert(0, {path!r}); from pytest_sandbox.launcher.main import "
    "main; main()"
)


def start_launcher(name: str, hierarchy: Hierarchy, channel: Channel) -> subprocess.Popen[bytes]:
    """Start the launcher of the session ``name``.

    Creates and locks (flock(2)) the session's lock file and its cgroups. The launcher inherits the
    locks, and the kernel releases them when it ends.
    """
    path = cleanup.lock_path(name)
    lock = file_lock.create_locked(path)
    try:
        # A lock file that stays empty is an unfinished start: cleanup removes it.
        os.write(lock, f"process {os.getpid()}\n".encode())
        session = hierarchy.session(name)
        try:
            return _spawn(name, path, [channel.fileno(), lock, *session.locks])
        except BaseException:
            session.close()
            raise
        finally:
            session.close_locks()
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(lock)


def _spawn(name: str, lock: str, fds: list[int]) -> subprocess.Popen[bytes]:
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    program = _PROGRAM.format(path=package)
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program, name, lock, *map(str, fds)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=None if os.environ.get("PYTEST_SANDBOX_DEBUG") else subprocess.DEVNULL,
        pass_fds=fds,
        start_new_session=True,  # a terminal's Ctrl-C must not reach it
        cwd="/",
    )
