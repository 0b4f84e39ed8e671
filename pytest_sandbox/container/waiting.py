"""Wait until a condition holds in a container, until its commands die, or until a deadline."""

from __future__ import annotations

import functools
import operator
import select
import time
from typing import TYPE_CHECKING, Any

from pytest_sandbox.container import unconnected
from pytest_sandbox.container.conditions import healthcheck, needs_log
from pytest_sandbox.container.kept_log import KeptLog
from pytest_sandbox.container.missing_programs import as_service_error
from pytest_sandbox.container.popen import Popen
from pytest_sandbox.container.probes import make_probe
from pytest_sandbox.container.processes import list_processes
from pytest_sandbox.errors import ContainerStopped, ServiceError, ServiceTimeout, SettingsError
from pytest_sandbox.linux import process
from pytest_sandbox.printable import TEXT, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.container.conditions import Condition
    from pytest_sandbox.container.handle import Command, Handle
    from pytest_sandbox.container.probes import Probe

__all__ = ["DEFAULT_TIMEOUT", "joined", "last_lines", "start_logged", "wait_for"]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all

#: Seconds that a wait takes at most by default: as long as testcontainers' and compose's longest
#: usual start of a database.
DEFAULT_TIMEOUT = 60.0
_LAST_LINES = 20
#: Seconds between two looks whether a command that has ended has left something running.
_LOOK_AGAIN = 0.05


def start_logged(handle: Handle, args: Any, keywords: dict[str, Any]) -> Popen[Any]:
    """Start a command whose output is kept, with keywords of :class:`Popen`.

    Raises :class:`SettingsError` if they say where the output goes.
    """
    for stream in ("stdout", "stderr"):
        if keywords.get(stream) is not None:
            raise SettingsError(stream, keywords[stream], "nothing with log=True, which keeps it")
    handle.running()
    log = KeptLog()
    handle.logs.append(log)
    try:
        command = Popen(handle, args, **keywords, stdout=log.writer, stderr=log.writer)
    except BaseException:
        handle.logs.remove(log)
        log.close()
        raise
    log.close_writer()
    command.kept_log = log
    return command


def joined(handle: Handle, given: list[Condition]) -> Condition:
    """Return one condition that holds once all have; without any, the image's HEALTHCHECK.

    Raises :class:`SettingsError` if there is none, or if no output is kept to search.
    """
    if not given:
        image = handle.rootfs.image
        check = healthcheck(image.config) if image else None
        if check is None:
            raise SettingsError(
                "condition",
                None,
                "what to wait for: port=, log=, http=, run= or file=, such as wait_for(port=8000), "
                "or a condition such as Port(80) | Log('ready'). Nothing is enough for an image "
                "with a HEALTHCHECK only",
            )
        return check
    condition = functools.reduce(operator.and_, given)
    if needs_log(condition) and not handle.logs:
        raise SettingsError("log", None, "a command whose output is kept: popen(..., log=True)")
    return condition


def wait_for(
    handle: Handle,
    condition: Condition,
    timeout: float,
    *,
    commands: Sequence[Command],
    name: str,
) -> None:
    """Return once a condition holds.

    Raises :class:`ServiceError` if one of ``commands`` fails or nothing of them runs any more, and
    :class:`ServiceTimeout` after ``timeout`` seconds. Both have the last lines of their output.
    """
    if timeout <= 0:
        raise SettingsError("timeout", timeout, "seconds, more than 0")
    kept = [command.kept_log for command in commands if command.kept_log is not None]
    logs = kept or list(handle.logs)  # a command that has ended may have left a service running
    probe = make_probe(handle, condition, logs)
    try:
        with as_service_error(name, handle, what="its readiness check"):
            _Wait(handle, probe, commands, logs, name).run(timeout)
    finally:
        probe.close()


class _Wait:
    def __init__(
        self,
        handle: Handle,
        probe: Probe,
        commands: Sequence[Command],
        logs: Sequence[KeptLog],
        name: str,
    ) -> None:
        self._handle, self._probe, self._name = handle, probe, name
        self._alive = list(commands)
        self._logs = logs
        self._has_commands = bool(commands)

    def run(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self._probe.check():
            self._check_alive()
            now = time.monotonic()
            if now >= deadline:
                raise ServiceTimeout(*self._failure(f"it took over timeout={timeout:g} seconds"))
            look = self._probe.next_look()
            if self._has_commands and not self._alive:
                look = min(now + _LOOK_AGAIN, look or deadline)
            self._poll(min(deadline, look or deadline) - now)

    def _poll(self, seconds: float) -> None:
        poll = select.poll()
        poll.register(self._handle.pidfd, select.POLLIN)
        for command in self._alive:
            if (fd := command.fileno()) >= 0:
                poll.register(fd, select.POLLIN)
        for fd, event in self._probe.polled():
            poll.register(fd, event)
        poll.poll(process.milliseconds(seconds))

    def _check_alive(self) -> None:
        """Raise if what should become ready has died."""
        for command in list(self._alive):
            code = command.poll()
            if code is not None:
                self._alive.remove(command)
            if code:
                raise ServiceError(*self._failure(_description(code), code))
        if process.ended(self._handle.pidfd, 0):
            raise ServiceError(*self._failure("its container has ended"))
        if self._has_commands and not self._alive and not self._runs():
            self._await_logs()
            if not self._probe.check():
                raise ServiceError(*self._failure(_description(0), 0))

    def _runs(self) -> bool:
        try:
            return bool(list_processes(self._handle))
        except ContainerStopped:
            return False

    def _await_logs(self) -> None:
        for log in self._logs:
            log.await_end()

    def _failure(self, reason: str, code: int | None = None) -> tuple[str, str, int | None, str]:
        if code is not None:
            self._await_logs()
        text = "".join(log.text() for log in self._logs)
        self._probe.check()
        reason = f"{reason}; {self._probe.found}{unconnected.describe(self._handle)}"
        return self._name, reason, code, last_lines(text)


def _description(code: int) -> str:
    how = f"ended with exit status {code}" if code >= 0 else f"was killed by signal {-code}"
    return f"it {how}"


def last_lines(text: str) -> str:
    """Return the last lines of a log, safe for a terminal."""
    return printable("\n".join(text.splitlines()[-_LAST_LINES:]), TEXT)
