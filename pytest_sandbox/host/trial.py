"""Trying something in a fork, which keeps what it changes to itself."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from pytest_sandbox.linux import process, signals

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Trial", "attempt"]

_PATIENCE = 10.0
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Trial:
    """How it went: ``said`` is what was seen or what went wrong; ``errno`` is 0 where it went
    well.
    """

    said: str
    errno: int = 0

    @property
    def went_well(self) -> bool:
        """Whether nothing was refused."""
        return not self.errno


def attempt(do: Callable[[], str], patience: float = _PATIENCE) -> Trial:
    """Do it in a fork, and return how it went; over ``patience`` seconds it is killed."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # the fork ends in os._exit, so it needs no other thread
        pid = os.fork()
    if not pid:
        os.close(reader)
        _do(do, writer)
    os.close(writer)
    try:
        answer = _read(reader, time.monotonic() + patience)
    finally:
        os.close(reader)
        if _is_running(pid):
            os.kill(pid, signal.SIGKILL)
        code = process.await_exit(pid, None, patience)
    if not answer:
        how = "an unknown status" if code is None else code
        return Trial(f"the attempt ended with {how} and no answer", errno.EIO)
    return Trial(**json.loads(answer))


def _is_running(pid: int) -> bool:
    try:
        return not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # the caller has its children reaped otherwise
        return False


def _do(do: Callable[[], str], writer: int) -> NoReturn:
    try:
        signals.reset()  # what is tried waits for children of its own
        try:
            answer = {"said": do()}
        except OSError as error:
            answer = {"said": error.strerror or str(error), "errno": error.errno or errno.EIO}  # type: ignore[dict-item]
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            answer = {"said": f"{type(error).__name__}: {error}", "errno": errno.EIO}  # type: ignore[dict-item]
        os.write(writer, json.dumps(answer).encode())
    finally:
        os._exit(0)


def _read(reader: int, deadline: float) -> bytes:
    """Read to the end of the pipe, or to the deadline."""
    parts: list[bytes] = []
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while poll.poll(process.milliseconds(deadline - time.monotonic())):
        part = os.read(reader, _CHUNK)
        if not part:
            return b"".join(parts)
        parts.append(part)
    return b""
