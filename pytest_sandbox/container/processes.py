"""List and signal the processes of a container from outside.

No process of this library in the container takes part: the processes to be killed could stop it,
starve it or kill it. The container's /proc shows its processes by their PIDs inside, and the
descriptor of a directory in it is a reference to the process (pidfd_send_signal(2)).
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pytest_sandbox.container.files import open_directory
from pytest_sandbox.errors import ContainerStopped, SandboxError
from pytest_sandbox.linux import process
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.linux.temporary_descriptors import TemporaryDescriptors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_sandbox.container.handle import Handle

__all__ = ["END_TIMEOUT", "kill_all", "kill_tree", "list_processes", "send_to_all"]

#: Seconds within which processes that were killed are expected to have ended.
END_TIMEOUT = 2.0
#: Seconds between two looks for processes that have not ended: nothing announces the end of many.
_PAUSE = 0.002
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_INIT = "1"


@contextmanager
def _proc(handle: Handle) -> Iterator[int]:
    """Open the container's /proc. Raises :class:`SandboxError` if something else is mounted
    there.
    """
    fd = open_directory(handle, process.PROC)
    try:
        if not process.is_proc_of(fd, handle.pid):
            if process.ended(handle.pidfd, 0):
                raise ContainerStopped.ended(handle.id)
            raise SandboxError(
                f"/proc of the container {handle.id} does not show its processes: something else "
                "is mounted there. Unmount it, or close() the container."
            )
        yield fd
    finally:
        os.close(fd)


def list_processes(handle: Handle) -> list[tuple[int, str]]:
    """Return the PID inside and the command line of every process but init, by PID; without
    processes that have ended.
    """
    with _proc(handle) as proc:
        alive = [int(pid) for pid in _pids(proc) if not process.is_dead(pid, proc)]
        found = [(pid, process.command_line(pid, proc)) for pid in alive]
    return sorted((pid, line) for pid, line in found if line)


def _pids(proc: int) -> list[str]:
    return [name for name in os.listdir(proc) if name.isdigit() and name != _INIT]


def send_to_all(handle: Handle, sig: int) -> None:
    """Send a signal to every process but init."""
    with _proc(handle) as proc:
        _send(proc, sig)


def _send(proc: int, sig: int) -> int:
    """Send a signal to every process in a /proc but init; return how many have not ended."""
    alive = 0
    for pid in _pids(proc):
        if process.is_dead(pid, proc):
            continue
        with suppress(FileNotFoundError, ProcessLookupError), _process(proc, pid) as fd:
            alive += 1
            signal.pidfd_send_signal(fd, sig)
    return alive


@contextmanager
def _process(proc: int, pid: str) -> Iterator[int]:
    """Open the directory of a process in a /proc, which serves as a pidfd."""
    fd = process.open_in_proc(pid, proc, _DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def kill_all(handle: Handle, timeout: float = END_TIMEOUT) -> bool:
    """Kill every process but init, also those that fork faster than they can be listed.

    Return whether all have ended within ``timeout`` seconds. The limit on CPU time is lifted
    meanwhile: a process needs some to end.
    """
    deadline = time.monotonic() + timeout
    with handle.cgroup.unthrottled(), _proc(handle) as proc:
        _send(proc, signal.SIGKILL)
        while _send(proc, 0):
            if time.monotonic() > deadline:
                return False
            _kill_while_frozen(handle, proc)
            time.sleep(_PAUSE)
    return True


def _kill_while_frozen(handle: Handle, proc: int) -> None:
    """Kill every process but init; while they are frozen, if the cgroup can do it, so that none
    can fork.
    """
    try:
        handle.cgroup.freeze(_PAUSE * 50)
    except (OSError, SandboxError):
        _send(proc, signal.SIGKILL)
        return
    try:
        _send(proc, signal.SIGKILL)
    finally:
        handle.cgroup.thaw()


def kill_tree(handle: Handle, pid: int) -> bool:
    """Kill a process of the container, by its PID outside, and its descendants.

    Return whether all that were found have ended within :data:`END_TIMEOUT` seconds.
    """
    with Deferred():
        opened = TemporaryDescriptors()
    try:
        with handle.cgroup.unthrottled():
            for one in process.descendants(pid):
                with Deferred():
                    opened.fds += _open_pidfd(one, handle.pid)
            for fd in opened.fds:
                process.kill(fd, signal.SIGKILL)
            deadline = time.monotonic() + END_TIMEOUT
            return all(process.ended(fd, deadline - time.monotonic()) for fd in opened.fds)
    finally:
        opened.close()


def _open_pidfd(pid: int, init: int) -> list[int]:
    """Return a pidfd of a process if it is in the PID namespace of ``init``, else nothing."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return []
    # The PID may have been given to another process: the descriptor must refer to the one checked.
    if process.is_in_namespace_of(pid, init) and not process.ended(fd, 0):
        return [fd]
    os.close(fd)
    return []
