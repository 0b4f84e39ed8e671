"""The processes of a container, seen and signalled from outside.

No process of this library's own is in the container for it: one could be stopped there, starved or
killed by what it is to end. The container's own /proc shows its processes by their PIDs inside, and
a descriptor of a directory in it is a reference to the process (pidfd_send_signal(2)).
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pytest_sandbox.errors import ContainerStopped, SandboxError
from pytest_sandbox.linux import process
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.runtime.protocol import close_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_sandbox.container.container import Container

__all__ = ["END_TIMEOUT", "kill_all", "kill_tree", "listed", "send_to_all"]

#: Seconds within which processes that were killed are expected to have ended.
END_TIMEOUT = 2.0
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_INIT = "1"


@contextmanager
def _proc(container: Container) -> Iterator[int]:
    """Open the container's /proc. Raises :class:`SandboxError` where something else lies there."""
    fd = container.open_directory(process.PROC)
    try:
        if not process.is_proc_of(fd, container.pid):
            if process.ended(container.pidfd, 0):
                raise ContainerStopped.ended(container.id)
            message = f"/proc of the container {container.id} does not show its processes"
            raise SandboxError(
                f"{message}: something else is mounted there. Unmount it, or close() the container."
            )
        yield fd
    finally:
        os.close(fd)


def listed(container: Container) -> list[tuple[int, str]]:
    """Return PID (inside) and command line of every process but init, by PID; not those that have
    ended.
    """
    with _proc(container) as proc:
        alive = [int(pid) for pid in _pids(proc) if not process.is_dead(pid, proc)]
        found = [(pid, process.command_line(pid, proc)) for pid in alive]
    return sorted((pid, line) for pid, line in found if line)


def _pids(proc: int) -> list[str]:
    return [name for name in os.listdir(proc) if name.isdigit() and name != _INIT]


def send_to_all(container: Container, number: int) -> None:
    """Send a signal to every process but init."""
    with _proc(container) as proc:
        _send(proc, number)


def _send(proc: int, number: int) -> int:
    """Send a signal to every process that a /proc shows but init; return how many live."""
    alive = 0
    for pid in _pids(proc):
        if process.is_dead(pid, proc):
            continue
        with suppress(FileNotFoundError, ProcessLookupError), _process(proc, pid) as fd:
            alive += 1
            signal.pidfd_send_signal(fd, number)
    return alive


@contextmanager
def _process(proc: int, pid: str) -> Iterator[int]:
    """Open a process's directory in a /proc, which serves as its pidfd."""
    fd = process.open_in_proc(pid, proc, _DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def kill_all(container: Container, timeout: float = END_TIMEOUT) -> bool:
    """Kill every process but init, also those that fork faster than they are found.

    Returns whether all have ended within ``timeout`` seconds; limits on CPU time are lifted
    meanwhile, for a process takes some to end.
    """
    deadline = time.monotonic() + timeout
    with container.cgroup.unthrottled(), _proc(container) as proc:
        _send(proc, signal.SIGKILL)
        while _send(proc, 0):
            if time.monotonic() > deadline:
                return False
            _kill_frozen(container, proc)
            time.sleep(_PAUSE)
    return True


#: Seconds between two looks at who has not ended yet; nothing announces the end of many processes.
_PAUSE = 0.002


def _kill_frozen(container: Container, proc: int) -> None:
    """Kill every process but init while none of them can fork, where cgroups can freeze."""
    try:
        container.cgroup.freeze(_PAUSE * 50)
    except (OSError, SandboxError):
        _send(proc, signal.SIGKILL)
        return
    try:
        _send(proc, signal.SIGKILL)
    finally:
        container.cgroup.thaw()


def kill_tree(container: Container, pid: int) -> bool:
    """Kill a process of the container, by its PID outside, and all below it.

    Returns whether all that were found have ended within :data:`END_TIMEOUT` seconds.
    """
    opened: list[int] = []
    try:
        with container.cgroup.unthrottled():
            for one in process.descendants(pid):
                with Deferred():
                    opened += _opened(one, container.pid)
            for fd in opened:
                process.kill(fd, signal.SIGKILL)
            deadline = time.monotonic() + END_TIMEOUT
            return all(process.ended(fd, deadline - time.monotonic()) for fd in opened)
    finally:
        with Deferred():
            close_all(opened)


def _opened(pid: int, init: int) -> list[int]:
    """Return a pidfd of a process, if it is in the PID namespace of ``init``."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return []
    # Whoever is looked at must be who the descriptor means: its PID could have passed to another.
    if process.is_in_namespace_of(pid, init) and not process.ended(fd, 0):
        return [fd]
    os.close(fd)
    return []
