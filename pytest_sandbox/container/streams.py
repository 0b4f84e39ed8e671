"""The standard streams of a command in a container."""

from __future__ import annotations

import fcntl
import os
import stat
from typing import TYPE_CHECKING

from pytest_sandbox.container.pump import Pump
from pytest_sandbox.linux import process, pty

if TYPE_CHECKING:
    from pytest_sandbox.linux.syscall_batch import SyscallBatch

__all__ = ["add_streams", "child_streams"]


def child_streams(given: tuple[int, int, int], opened: list[int], pumps: list[Pump]) -> list[int]:
    """Return the descriptors for stdin, stdout and stderr of the command; those that this opens
    are also appended to ``opened``, and pumps of its output to ``pumps``.

    ``given`` is what subprocess was asked for; -1 is the caller's own stream, or /dev/null if
    that is closed. A regular file goes through a pipe, since the command could open it again by
    /proc/self/fd with other rights. So does the caller's own stdout or stderr that is a pipe or
    a socket, since O_NONBLOCK set inside would also hold for the caller (fcntl(2)). The same
    file gets one pipe, which keeps the order of the output. A terminal of the caller's is
    opened again.
    """
    fds = [standard if fd == -1 else fd for standard, fd in enumerate(given)]
    found = [_status_of(fd, inherited=given[standard] == -1) for standard, fd in enumerate(fds)]
    pipes: dict[tuple[int, int], int] = {}
    for standard, status in enumerate(found):
        is_inherited = given[standard] == -1
        if status is None:
            fds[standard] = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            opened.append(fds[standard])
        elif is_inherited and os.isatty(fds[standard]):
            fds[standard] = _reopened(fds[standard])
            opened.append(fds[standard])
        elif stat.S_ISREG(status.st_mode) or (
            is_inherited and standard and _is_stream(status.st_mode)
        ):
            key = (status.st_ino if standard else -1, status.st_dev)
            if key not in pipes:
                pipes[key] = _start_pump(fds[standard], pumps, reading=standard == 0)
                opened.append(pipes[key])
            fds[standard] = pipes[key]
    return fds


def _start_pump(fd: int, pumps: list[Pump], *, reading: bool) -> int:
    pump = Pump(fd, reading=reading)
    if not reading:
        pumps.append(pump)
    return pump.child_end


def _status_of(fd: int, *, inherited: bool) -> os.stat_result | None:
    """Return the fstat(2) of a descriptor; None for an inherited one that is closed, or that exec
    would close: then a file of this process has taken the number of a closed stream.
    """
    if not inherited:
        return os.fstat(fd)
    try:
        return None if fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC else os.fstat(fd)
    except OSError:
        return None


def _is_stream(mode: int) -> bool:
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _reopened(terminal_fd: int) -> int:
    """Return a new open file description of a terminal; the same one if the terminal has no path
    here.
    """
    try:
        return os.open(process.path_of(terminal_fd), os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return os.dup(terminal_fd)


def add_streams(batch: SyscallBatch, streams: list[int], *, tty: bool) -> None:
    """Append what makes three descriptors the standard streams, whatever their numbers are."""
    step = "set streams"
    high = [batch.add(step, "fcntl", fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in streams]
    for standard, fd in enumerate(high):
        batch.add(step, "dup3", fd, standard, 0)
    if tty:
        batch.add(step, "ioctl", 0, pty.TIOCSCTTY, 0)
