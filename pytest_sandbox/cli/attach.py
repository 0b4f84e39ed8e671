"""A command in a container that uses the streams or the terminal of this process, its signals and
its exit status.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from pytest_sandbox.cli import signal_proxy
from pytest_sandbox.cli.exit_status import CANNOT_EXECUTE, NOT_FOUND, complain, status_of
from pytest_sandbox.cli.raw_terminal import Raw, copy_size
from pytest_sandbox.cli.relay import Relay
from pytest_sandbox.errors import SandboxError
from pytest_sandbox.runtime.protocol import close_all

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.container.container import Container
    from pytest_sandbox.container.popen import Popen

__all__ = ["Command", "attach"]

#: Signals of keys, which the kernel sends to the whole foreground process group.
_KEYS = (signal.SIGINT, signal.SIGQUIT)
_QUIET = 0.1  # seconds without output after which the rest of it is not awaited
_STDIN, _STDOUT, _STDERR = range(3)


@dataclass(frozen=True, slots=True)
class Command:
    """A command, and how it uses this process. ``env`` is added to the container's environment."""

    args: list[str]
    interactive: bool = False
    tty: bool = False
    sig_proxy: bool = True
    timeout: float | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str | None = None
    user: str | None = None


def attach(container: Container, command: Command) -> int:
    """Run a command with the streams of this process, close the container, and return the exit
    status.
    """
    if command.tty and command.interactive and not os.isatty(_STDIN):
        raise SandboxError(
            "-it needs a terminal, but standard input is not a terminal. Leave out -t to pipe into "
            "the command, or -i to see only its output."
        )
    try:
        with _Attachment(container, command) as attachment:
            status = attachment.run()
    except _CannotStart as error:
        complain(error)
        return error.status
    attachment.report_kill()
    return status


class _CannotStart(Exception):
    """The command was not found, or cannot be executed."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"{error.strerror}: {error.filename}")
        self.status = NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_EXECUTE


class _Attachment:
    """A running command with its routes, and what to clean up."""

    def __init__(self, container: Container, command: Command) -> None:
        self.container = container
        self.command = command
        self.relay = Relay()
        self.undo = ExitStack()
        self.outputs: list[int] = []
        self.master = -1
        self.overran = False
        self.hung_up = False
        self.kills = container.handle.cgroup.oom_kills()
        self.oom_kills = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.undo.close()

    def run(self) -> int:
        """Start the command, copy and forward until it has ended, and return its exit status."""
        self.box = self.undo.enter_context(signal_proxy.Mailbox(self._signals()))
        popen = self._start()
        self.relay.watch(self.box.fileno(), lambda: self._deliver(popen))
        deadline = None if self.command.timeout is None else time.monotonic() + self.command.timeout
        while popen.poll() is None and not self.hung_up:
            self.relay.step(None if deadline is None else deadline - time.monotonic())
            if deadline is not None and time.monotonic() >= deadline and popen.poll() is None:
                self.overran, deadline = True, None
                self.container.kill()
        status = -signal.SIGHUP if popen.returncode is None else popen.returncode
        self.oom_kills = self.container.handle.cgroup.oom_kills() - self.kills
        self.container.close()
        self.relay.drain(self.outputs, _QUIET)
        return status_of(status)

    def report_kill(self) -> None:
        """Print why the command was killed, after the terminal was restored."""
        if self.overran:
            complain(
                f"killed: the command ran longer than --timeout {self.command.timeout:g} seconds."
            )
        elif self.oom_kills:
            complain(
                "killed for memory: the command needed more than --memory. Raise --memory, or use "
                "less memory."
            )

    def _signals(self) -> list[signal.Signals]:
        proxied = list(signal_proxy.FORWARDED) if self.command.sig_proxy else []
        return (
            [*proxied, signal.SIGWINCH, signal.SIGCONT, signal.SIGTSTP]
            if self.command.tty
            else proxied
        )

    # -- starting

    def _start(self) -> Popen[bytes]:
        self.undo.callback(self.container.close)
        slave = self._open_terminal() if self.command.tty else -1
        stdin, stdout, stderr = (
            (slave, slave, slave) if self.command.tty else self._choose_streams()
        )
        environment = self.container.handle.rootfs.environment(self.container.hostname)
        if self.command.tty and self.container.settings.image != "host":
            environment.setdefault("TERM", "xterm")
        try:
            popen = self.container.popen(
                self.command.args,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                tty=self.command.tty,
                env={**environment, **self.command.env},
                cwd=self.command.workdir,
                user=self.command.user,
                bufsize=0,
            )
        except OSError as error:
            raise _CannotStart(error) from error
        finally:
            close_all([slave] if self.command.tty else [])
        self.relay.watch(popen.fileno(), popen.poll)
        self._connect(popen)
        return popen

    def _open_terminal(self) -> int:
        """Open a terminal of the container with the size of the user's terminal, and return the
        descriptor for the command.
        """
        from pytest_sandbox.container.files import open_terminal

        try:
            self.master, slave = open_terminal(self.container.handle)
        except OSError as error:
            raise SandboxError(
                f"cannot open a terminal for the command: {error.strerror}. Leave out -t."
            ) from error
        self.undo.callback(os.close, self.master)
        os.set_blocking(self.master, False)
        copy_size(_STDIN if self.command.interactive else _STDOUT, self.master)
        return slave

    def _choose_streams(self) -> tuple[int | None, int | None, int | None]:
        """Return the streams of the command: our own, or a pipe in place of our terminal, which a
        container must not have.
        """
        stdin: int | None = subprocess.DEVNULL
        if self.command.interactive:
            stdin = subprocess.PIPE if os.isatty(_STDIN) else None
        stdout = subprocess.PIPE if _is_terminal(_STDOUT) else None
        stderr = subprocess.PIPE if _is_terminal(_STDERR) else None
        if stdout == stderr == subprocess.PIPE and os.ttyname(_STDOUT) == os.ttyname(_STDERR):
            stderr = subprocess.STDOUT  # one pipe keeps the order of the output
        return stdin, stdout, stderr

    def _connect(self, popen: Popen[bytes]) -> None:
        """Set up the routes between our streams and those of the command."""
        if self.command.tty:
            self._route_output(self.master, _STDOUT)
            if self.command.interactive:
                self.raw = self.undo.enter_context(Raw(_STDIN))
                self.relay.route(_STDIN, self.master, eager=True, at_end=self._hang_up)
            return
        if popen.stdin is not None:
            os.set_blocking(popen.stdin.fileno(), False)
            self.relay.route(_STDIN, popen.stdin.fileno(), eager=True, at_end=popen.stdin.close)
        for stream, target in ((popen.stdout, _STDOUT), (popen.stderr, _STDERR)):
            if stream is not None:
                self.undo.callback(stream.close)
                self._route_output(stream.fileno(), target)

    def _hang_up(self) -> None:
        """Note that the user's terminal has hung up: in raw mode there is no other end of input."""
        self.hung_up = True

    def _route_output(self, source: int, target: int) -> None:
        self.outputs.append(source)
        self.relay.route(source, target)

    # -- signals

    def _deliver(self, popen: Popen[bytes]) -> None:
        """Handle the received signals."""
        for number in self.box.read():
            if number == signal.SIGWINCH:
                copy_size(_STDIN if self.command.interactive else _STDOUT, self.master)
            elif number in {signal.SIGTSTP, signal.SIGCONT}:
                self._stop_or_continue(number)
            elif number in _KEYS:
                popen.signal_group(number)
            elif number in signal_proxy.FORWARDED:
                popen.send_signal(number)

    def _stop_or_continue(self, number: int) -> None:
        """Restore the terminal and stop on SIGTSTP; set raw mode when continued."""
        if not self.command.interactive:
            if number == signal.SIGTSTP:
                os.kill(os.getpid(), signal.SIGSTOP)
            return
        if number == signal.SIGTSTP:
            self.raw.end()
            os.kill(os.getpid(), signal.SIGSTOP)
        self.raw.begin()
        copy_size(_STDIN, self.master)


def _is_terminal(fd: int) -> bool:
    with suppress(OSError):
        return stat.S_ISCHR(os.fstat(fd).st_mode) and os.isatty(fd)
    return False
