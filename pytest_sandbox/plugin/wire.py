"""Reports, warnings and the session's end, on their way from a fork to its parent: JSON, through pytest's public hooks."""

from __future__ import annotations

import json
import select
import time
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.plugin import compat

if TYPE_CHECKING:
    import warnings

    from pytest_sandbox.channel import Channel

__all__ = ["Sender", "receive_all"]


class Sender:
    """The fork's end; registered as a plugin there, so that what other plugins log or warn arrives too."""

    def __init__(self, config: pytest.Config, channel: Channel) -> None:
        self._config = config
        self._channel = channel
        for hook in ("pytest_runtest_logreport", "pytest_warning_recorded"):
            compat.take_over(config, hook)
        config.pluginmanager.register(self, "sandbox-sender")

    def send(self, kind: str, data: Any) -> None:
        """Send one message; what JSON cannot hold arrives as its repr."""
        self._channel.send({"kind": kind, "data": json.loads(json.dumps(data, default=_repr))})

    def report(self, report: pytest.TestReport) -> None:
        """Send a report."""
        self.send("report", self._config.hook.pytest_report_to_serializable(config=self._config, report=report))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Send what somebody else logs here: a subtest."""
        self.report(report)

    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage, when: str, nodeid: str, location: Any) -> None:
        """Send a warning."""
        data = {
            "message": str(warning_message.message),
            "category": [warning_message.category.__module__, warning_message.category.__qualname__],
            "filename": warning_message.filename,
            "lineno": warning_message.lineno,
            "when": when,
            "nodeid": nodeid,
            "location": location,
        }
        self.send("warning", data)

    def end_session(self, error: BaseException) -> None:
        """Tell the parent that the test ends the whole session."""
        reason = getattr(error, "msg", None)
        self.send("exit" if isinstance(error, pytest.exit.Exception) else "interrupt", [reason, getattr(error, "returncode", None)])

    def done(self) -> None:
        """Say that nothing is missing: without it the parent holds that the test ended early."""
        self.send("done", None)


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a test's object
        return f"<{type(value).__qualname__}>"


def receive_all(channel: Channel, pidfd: int, timeout: float | None) -> tuple[list[dict[str, Any]], bool]:
    """Receive until the fork has ended or the time is over; a stray process that holds the channel does not delay the end."""
    received: list[dict[str, Any]] = []
    poll = select.poll()
    for fd in (channel.fileno(), pidfd):
        poll.register(fd, select.POLLIN)
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        left = None if end is None else (end - time.monotonic()) * 1000
        ready = dict(poll.poll(left)) if left is None or left > 0 else {}
        if channel.fileno() in ready:
            try:
                received.append(channel.receive()[0])
            except EOFError:
                poll.unregister(channel.fileno())
        elif pidfd in ready:
            return received, True
        elif end is not None and time.monotonic() >= end:
            return received, False
