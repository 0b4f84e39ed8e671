"""``run -d``: start a supervisor process, and print the id of its container."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.cli.exit_status import OUR_ERROR, complain

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Report", "detach"]

#: Signals that the caller may ignore (nohup(1), `&` in a shell), and the command must not: a
#: program inherits that a signal is ignored (execve(2)).
_SIGNALS = (
    signal.SIGHUP,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGCHLD,
)


class Report:
    """What the supervisor tells the process of ``run -d``, once: the id, or an error."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def started(self, id: str) -> None:  # noqa: A002 - as Container.id
        """Report that the command runs."""
        self._send({"id": id})

    def failed(self, error: object, status: int = OUR_ERROR) -> None:
        """Report that nothing was started, unless it was reported that the command runs."""
        self._send({"error": str(error), "status": status})

    def _send(self, message: dict[str, object]) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(BrokenPipeError):  # `run -d` was killed; the container goes on
                os.write(fd, json.dumps(message).encode())
            os.close(fd)


def detach(supervise: Callable[[Report], None]) -> int:
    """Call ``supervise`` in a new process; print the id that it reports, and return the status.

    The process is in a session of its own (setsid(2)), and no child of this one.
    """
    from pytest_sandbox.linux import process  # other operating systems lack what it imports

    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        process.close_others({writer})  # what the caller has left open, such as a lock
        _become_supervisor(supervise, Report(writer))
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader, "rb") as pipe:
        text = pipe.read()
    if not text:
        complain("the supervisor of the container was killed before its command ran")
        return OUR_ERROR
    message = json.loads(text)
    if "id" in message:
        print(message["id"])
        return 0
    complain(message["error"])
    return int(message["status"])


def _become_supervisor(supervise: Callable[[Report], None], report: Report) -> None:
    """Leave the caller's session and streams, supervise, and end the process."""
    status = 1
    try:
        os.setsid()
        if os.fork() == 0:
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            supervise(report)
        status = 0
    except BaseException as error:  # noqa: BLE001 - nobody else could report it
        report.failed(error)
    finally:
        os._exit(status)
