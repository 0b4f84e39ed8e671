"""``Container.call``: run a Python function in a fork inside, and return its value.

The fork writes one line of JSON to a socket: ``{"value": ...}`` or ``{"error": ...}``, encoded by
:mod:`pytest_sandbox.container.values`. Nothing that comes out of a container is executed.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from pytest_sandbox.container import values
from pytest_sandbox.container.fork import fork_into
from pytest_sandbox.errors import OutOfMemory, SandboxError
from pytest_sandbox.linux import process
from pytest_sandbox.outcome import OOMKilled, Outcome, TimedOut
from pytest_sandbox.runtime.protocol import Channel

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.container.handle import Handle

__all__ = ["run_call"]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all

_CHUNK = 1 << 16
#: Bytes of an answer: it comes from inside, and is kept in memory more than once.
_ANSWER_MAX = 64 << 20


def run_call(
    handle: Handle,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    keywords: dict[str, Any],
    timeout: float | None,
) -> Any:
    """Run ``func(*args, **keywords)`` in a fork inside; return its value or raise its exception.

    Raises what :meth:`Container.call` does.
    """
    user = handle.ready().rootfs.user
    ours, theirs = (end.socket for end in Channel.pair())
    with ours, theirs:
        _flush()  # or the fork would write it a second time
        child = fork_into(handle, user, shielded=True)
        if child is None:
            ours.close()
            _answer(theirs, func, args, keywords)
        theirs.close()
        try:
            end = None if timeout is None else time.monotonic() + timeout
            data = _receive(ours, child.pidfd, end)
            outcome = child.wait(
                None if end is None else max(0, end - time.monotonic()), everything=False
            )
        except BaseException:
            child.reap()
            raise
    if isinstance(outcome, TimedOut):
        raise TimeoutError(
            f"call() was killed after {timeout} seconds; running inside: "
            f"{', '.join(outcome.processes)}"
        )
    return _value_of(outcome, data)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # any object may be there; None if the stream is closed
            stream.flush()


def _answer(
    to: socket.socket, func: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any]
) -> NoReturn:
    """Call the function in the fork, send what it returns or raises, and exit."""
    try:
        try:
            answer = json.dumps({"value": values.encode(func(*args, **keywords))})
        except BaseException as error:  # noqa: BLE001 - it is raised in the caller
            answer = json.dumps({"error": values.encode_exception(error)})
        _flush()
        to.sendall(answer.encode() + b"\n")
    finally:
        os._exit(0)


def _receive(ours: socket.socket, pidfd: int, end: float | None) -> bytes:
    """Read to the end of the answer, the end of the child, or the time ``end``.

    Raises :class:`SandboxError` for more than 64 MiB.
    """
    poll = select.poll()
    for fd in (ours.fileno(), pidfd):
        poll.register(fd, select.POLLIN)
    data = bytearray()
    while len(data) <= _ANSWER_MAX:
        ready = dict(
            poll.poll(None if end is None else process.milliseconds(end - time.monotonic()))
        )
        if not ready:  # the time is over
            return bytes(data)
        # poll(2) looks at one descriptor after the other: a child that has ended may have sent its
        # answer in between.
        try:
            part = ours.recv(_CHUNK, socket.MSG_DONTWAIT)
        except (BlockingIOError, ConnectionResetError):
            part = b""
        data += part
        if not part or part.endswith(b"\n"):
            return bytes(data)
    raise SandboxError(
        f"call() returned more than {_ANSWER_MAX >> 20} MiB. Return less, or write a file and "
        "copy_out() it."
    )


def _value_of(outcome: Outcome, data: bytes) -> Any:
    """Return the value in an answer, or raise the exception in it."""
    if isinstance(outcome, OOMKilled):
        raise OutOfMemory(
            -signal.SIGKILL, "call()", memory_limit=outcome.limit, memory_peak=outcome.peak
        )
    if not data.endswith(b"\n"):
        raise SandboxError(
            f"call() ended without an answer: {outcome}. Check what the function did last."
        )
    error, value = _decode(data)
    if error is not None:
        raise error
    return value


def _decode(data: bytes) -> tuple[BaseException | None, Any]:
    """Return the exception or the value of an answer, which may have any content: a process inside
    may have written to the socket.
    """
    try:
        answer = json.loads(data)
        return (
            (values.decode_exception(answer["error"]), None)
            if "error" in answer
            else (None, values.decode(answer["value"]))
        )
    except SandboxError:
        raise
    except Exception as error:  # noqa: BLE001 - a forged answer may have any fault
        raise SandboxError(
            f"call() returned an invalid answer ({type(error).__name__}). Check what else wrote to "
            "the descriptors of the function's process."
        ) from None
