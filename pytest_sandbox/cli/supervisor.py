"""The supervisor of a detached container: it keeps the log, restarts the command, and at the end
saves the layer, or removes everything with ``--rm``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from pytest_sandbox.cli import signal_proxy, supervisor_requests
from pytest_sandbox.cli.exit_status import CANNOT_EXECUTE, NOT_FOUND, OUR_ERROR, status_of
from pytest_sandbox.cli.relay import Relay
from pytest_sandbox.container import detached, saved_layers
from pytest_sandbox.container.detached_log import STDERR, STDOUT, LogLimits, LogWriter
from pytest_sandbox.errors import SandboxError, UnsupportedError
from pytest_sandbox.linux.removal import remove_tree
from pytest_sandbox.runtime import storage
from pytest_sandbox.runtime.protocol import close_all

if TYPE_CHECKING:
    from pytest_sandbox.cli.detach import Report
    from pytest_sandbox.container.container import Container
    from pytest_sandbox.container.detached import Facts
    from pytest_sandbox.container.popen import Popen
    from pytest_sandbox.runtime.protocol import Message

__all__ = ["Supervisor"]

_CHUNK = 1 << 16
_QUIET = 0.1  # seconds without output after which the rest of it is not awaited
#: Docker's delays before a restart: they double, and begin again after a run of 10 seconds.
_FIRST_DELAY, _MOST_DELAY, _LONG_RUN = 0.1, 60.0, 10.0


class Supervisor:
    """Runs the command of one container, as often as its restart policy says."""

    def __init__(self, container: Container, facts: Facts) -> None:
        self.container = container
        self.facts = facts
        self.is_stopped = False  # by `stop` or `kill`, after which nothing is restarted
        self._popen: Popen[bytes] | None = None
        self._relay = Relay()
        self._delay = _FIRST_DELAY
        saved_layers.make_home()
        place = os.path.join(saved_layers.home(), facts.id)
        self.directory, self._lock = storage.make_unfinished(place)
        self._log = LogWriter(self.directory, LogLimits.read(facts.log_options.items()))
        detached.write_status(self.directory, "")
        detached.write_name(self.directory, container.handle.label)
        detached.write_facts(self.directory, facts)
        self._requests = supervisor_requests.listen(self.directory, self._answer)
        self._relay.watch(self._requests.fileno(), self._requests.attend)

    def _answer(self, message: Message, _fds: list[int]) -> Message:
        """Answer a request of another process. Raises :class:`SandboxError` and OSError."""
        from pytest_sandbox.container.snapshot import commit_to_store
        from pytest_sandbox.container.store_commit import Details

        changes = tuple(message["changes"])
        details = Details(message["name"], message["message"], message["author"], changes)
        try:
            image = commit_to_store(self.container.handle.running(), details)
        except UnsupportedError as error:  # what runs inside cannot be paused
            remedy = f"{error.remedy} Or stop the container, and commit it then."
            raise UnsupportedError(error.feature, remedy) from error
        return {"op": "committed", "image": image.id}

    def supervise(self, report: Report) -> None:
        """Run the command until its last end, and clean up; report its first start."""
        started = False
        try:
            with signal_proxy.Mailbox([detached.STOP, detached.KILL]) as self._box:
                self._relay.watch(self._box.fileno(), self._deliver)
                self._start()
                started = True
                report.started(self.facts.id)
                self._run()
                while self._wants_restart() and self._pause():
                    self._restart()
        except (OSError, SandboxError) as error:
            self.facts.error = _text_of(error)
            report.failed(self.facts.error, _status_of_failure(error))
        finally:
            self._finish(keep=started and not self.facts.remove)

    # -- one run

    def _start(self) -> None:
        """Start the command. Raises OSError if it cannot be executed."""
        with ExitStack() as undo:
            master = slave = -1
            if self.facts.tty:
                master, slave = self._open_terminal()
                undo.callback(os.close, slave)
            environment = self.container.handle.rootfs.environment(self.container.hostname)
            if self.facts.tty and self.container.settings.image != "host":
                environment.setdefault("TERM", "xterm")
            unused = subprocess.PIPE if self.facts.stdin else subprocess.DEVNULL
            self._popen = self.container.popen(
                self.facts.command,
                stdin=slave if self.facts.tty else unused,
                stdout=slave if self.facts.tty else subprocess.PIPE,
                stderr=slave if self.facts.tty else subprocess.PIPE,
                tty=self.facts.tty,
                env=environment,
                bufsize=0,
            )
        self.facts.state, self.facts.pid = "running", self._popen.pid
        self.facts.started = time.time()
        detached.write_facts(self.directory, self.facts)
        self._connect(self._popen, master)

    def _open_terminal(self) -> tuple[int, int]:
        from pytest_sandbox.container.files import open_terminal

        master, slave = open_terminal(self.container.handle)
        os.set_blocking(master, False)
        return master, slave

    def _connect(self, popen: Popen[bytes], master: int) -> None:
        """Copy the output of the command to the log."""
        self._outputs = {master: STDOUT} if master >= 0 else {}
        for stream, number in ((popen.stdout, STDOUT), (popen.stderr, STDERR)):
            if stream is not None:
                self._outputs[os.dup(stream.fileno())] = number
                stream.close()
        for fd in self._outputs:
            os.set_blocking(fd, False)
            self._watch(fd)

    def _watch(self, fd: int) -> None:
        self._relay.watch(fd, lambda: self._copy(fd))

    def _copy(self, fd: int) -> None:
        """Append available output to the log; at its end, stop watching."""
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        if data:
            self._log.append(self._outputs[fd], data)
            return
        self._relay.forget(fd)
        del self._outputs[fd]
        os.close(fd)

    def _run(self) -> None:
        """Wait until the command has ended, and everything that it has started."""
        popen = self._popen
        assert popen is not None
        kills = self.container.handle.cgroup.oom_kills()
        timeout = self.container.settings.timeout
        end = None if timeout is None else time.monotonic() + timeout
        exit_fd = popen.fileno()
        self._relay.watch(exit_fd, lambda: None)
        while popen.poll() is None:
            self._relay.step(None if end is None else max(0.0, end - time.monotonic()))
            if end is not None and time.monotonic() >= end:
                popen.kill()
                end = None
        self._relay.forget(exit_fd)
        self._popen = None
        with suppress(SandboxError, OSError):  # init was killed, and with it all others
            self.facts.oom_killed = self.container.handle.cgroup.oom_kills() > kills
            self.container.kill()
        self._drain()
        if popen.stdin is not None:
            popen.stdin.close()
        self.facts.exit_code = status_of(popen.returncode)
        self.facts.pid, self.facts.finished = 0, time.time()

    def _drain(self) -> None:
        """Copy what is left of the output, until its end or a pause of it."""
        while self._outputs and self._relay.step(_QUIET):
            pass
        for fd in list(self._outputs):
            self._relay.forget(fd)
        close_all(list(self._outputs))
        self._outputs = {}

    # -- signals and restarts

    def _deliver(self) -> None:
        """Handle the received signals: the stop signal to the command, or SIGKILL."""
        for number in self._box.read():
            self.is_stopped = True
            is_kill = number == detached.KILL
            if self._popen is not None and self._popen.poll() is None:
                self._popen.send_signal(signal.SIGKILL if is_kill else self.facts.stop_signal)

    def _wants_restart(self) -> bool:
        """Return whether the policy restarts the command; the container must still run."""
        policy, _, most = self.facts.restart.partition(":")
        if self.is_stopped or policy == "no" or self.container.status != "running":
            return False
        if policy == "on-failure":
            too_many = bool(most) and self.facts.restarts >= int(most)
            return self.facts.exit_code != 0 and not too_many
        return True

    def _pause(self) -> bool:
        """Wait before the restart; return False if the container was stopped meanwhile."""
        is_long = self.facts.finished - self.facts.started >= _LONG_RUN
        self._delay = _FIRST_DELAY if is_long else self._delay
        self.facts.state = "restarting"
        detached.write_facts(self.directory, self.facts)
        end = time.monotonic() + self._delay
        self._delay = min(self._delay * 2, _MOST_DELAY)
        while not self.is_stopped and (left := end - time.monotonic()) > 0:
            self._relay.step(left)
        return not self.is_stopped

    def _restart(self) -> None:
        self.facts.restarts += 1
        self._start()
        self._run()

    # -- the end

    def _finish(self, *, keep: bool) -> None:
        """Save the layer and end the container, or remove everything; then release the lock."""
        self.facts.state, self.facts.pid = "exited", 0
        self._log.close()
        self._requests.close()
        try:
            if keep:
                self._keep()
        finally:
            with suppress(SandboxError, OSError):
                self.container.close()
            self._end_launcher()
            with suppress(OSError):
                detached.write_status(self.directory, str(self.facts.exit_code))
            if not keep:
                with suppress(OSError):
                    remove_tree(self.directory)
            os.close(self._lock)

    def _keep(self) -> None:
        """Save the layer; without it, keep the log and the reason."""
        if self._log.error is not None:
            self.facts.error = f"a part of the log was discarded: {self._log.error}"
        place = os.path.join(saved_layers.home(), self.facts.id)
        unfinished = self.directory
        detached.write_facts(unfinished, self.facts)
        detached.write_status(unfinished, str(self.facts.exit_code))
        try:
            saved_layers.save_into(self.container.handle, unfinished)
        except SandboxError as error:
            self.facts.error = str(error)
            detached.write_facts(unfinished, self.facts)
            saved_layers.keep_without_layer(self.container.handle, unfinished)
        self.directory = place

    @staticmethod
    def _end_launcher() -> None:
        """End the launcher: this process does not exit in the usual way."""
        from pytest_sandbox.client import session

        launcher = session.running()
        if launcher is not None:
            launcher.close()


def _text_of(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}"
    return str(error)


def _status_of_failure(error: Exception) -> int:
    """Return the exit status of ``run -d`` for a command that could not be started."""
    if isinstance(error, FileNotFoundError):
        return NOT_FOUND
    return CANNOT_EXECUTE if isinstance(error, OSError) else OUR_ERROR
