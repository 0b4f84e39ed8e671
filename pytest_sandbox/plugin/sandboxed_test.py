"""One test that runs in a container, as an object of both processes."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.container.container import Container
from pytest_sandbox.container.fork import fork_into
from pytest_sandbox.container.lifecycle import prepare
from pytest_sandbox.errors import SandboxError
from pytest_sandbox.linux import process
from pytest_sandbox.outcome import Exited, Outcome, TimedOut
from pytest_sandbox.plugin import (
    artifacts,
    benchmarks,
    carry,
    compat,
    coverage_data,
    python_home,
    results,
    service_fixtures,
    session_state,
    test_process,
)
from pytest_sandbox.plugin.captured_output import CapturedOutput
from pytest_sandbox.plugin.log_locks import HeldLocks
from pytest_sandbox.plugin.message_checker import MessageChecker
from pytest_sandbox.plugin.report_channel import Receiver, ReportChannel
from pytest_sandbox.plugin.stash import IN_TEST_PROCESS, SETTINGS
from pytest_sandbox.plugin.timeouts import PluginTimeouts
from pytest_sandbox.plugin.unsupported import as_test_result

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.container.fork import Child
    from pytest_sandbox.plugin.originals import Originals

__all__ = ["TEST", "SandboxedTest"]

#: Seconds that a test process may take to end after its last message.
_EXIT_TIMEOUT = 2
#: The run of a test, from the protocol's start to its end, or from an early start on.
TEST = pytest.StashKey["SandboxedTest"]()


class _Run:
    """What the parent has of a test process, from its start to its result."""

    def __init__(
        self,
        child: Child,
        receiver: Receiver,
        channel: ReportChannel,
        output: CapturedOutput,
        started: float,
    ) -> None:
        self.child = child
        self.receiver = receiver
        self.channel = channel
        self.output = output
        self.started, self.ended = started, 0.0
        self.outcome: Outcome | None = None
        self.captured: list[tuple[str, str]] = []
        self._is_closed = False
        _open_runs.add(self)

    def end(self) -> None:
        """Find out how the test process has ended, once its receiver is over.

        Closes the descriptors: many tests may wait for their turn.
        """
        self.outcome = self._find_outcome()
        self.ended = time.time()
        self.captured = self.output.read()
        self.close()

    def _find_outcome(self) -> Outcome:
        receiver, child = self.receiver, self.child
        if not receiver.timed_out:
            if receiver.invalid:
                process.kill(child.pidfd, signal.SIGKILL)
            # After its last message the test is over: SandboxedTest.close() waits for the process.
            return Exited(0) if receiver.is_done else child.wait()
        if not receiver.interrupted:
            receiver.request_stack()
        outcome = child.wait(0)
        if isinstance(outcome, TimedOut):
            return replace(outcome, limit=receiver.limit_seconds)
        if isinstance(outcome, Exited) and not receiver.interrupted:
            # The signal for its stack has interrupted a system call, and the test went on.
            return TimedOut(receiver.limit_seconds)
        return outcome

    def close(self) -> None:
        """Close the descriptors, once."""
        if not self._is_closed:
            self._is_closed = True
            _open_runs.discard(self)
            self.output.close()
            self.channel.close()

    def abandon(self) -> None:
        """Close the descriptors in the process of another test, which could forge reports."""
        self._is_closed = True
        self.output.abandon()
        self.channel.close()


#: The runs of this process that have descriptors.
_open_runs: set[_Run] = set()


class SandboxedTest:
    """One run of a test, which replaces the item's own setup, runtest and teardown.

    The object exists in both processes after the fork: ``test_process`` is None in the parent.
    """

    def __init__(
        self, item: pytest.Item, forwarder: test_process.HookForwarder, originals: Originals
    ) -> None:
        self.item = item
        self._forwarder = forwarder
        self._originals = originals
        self._item_teardown = item.teardown
        self._item_repr_failure = item.repr_failure
        self.test_process: test_process.TestProcess | None = None
        self.result: results.TestResult | None = None
        self._container: Container | None = None
        self._run: _Run | None = None
        self._timeouts = PluginTimeouts(item)
        self._nextitem: pytest.Item | None = None

    def replace_phases(self) -> None:
        """Replace the item's functions for its phases."""
        self.item.setup = self._set_up  # type: ignore[method-assign]
        self.item.runtest = self._log_subtests  # type: ignore[method-assign]
        self.item.teardown = self._tear_down  # type: ignore[method-assign]
        self.item.repr_failure = self._repr_failure  # type: ignore[method-assign, assignment]

    def restore_phases(self) -> None:
        """Restore the item's functions."""
        for name in ("setup", "runtest", "teardown", "repr_failure"):
            self.item.__dict__.pop(name, None)

    # -- the start

    def start_early(self) -> bool:
        """Start the test before its turn, between two other tests. Return False in the test
        process, which has to run the protocol of the test.

        Raises the result of a test whose container cannot start.
        """
        is_parent = self._start(None, ExitStack())
        if not is_parent:
            self.replace_phases()
        return is_parent

    def _start(self, nextitem: pytest.Item | None, recorded_warnings: ExitStack) -> bool:
        """Start the container and fork into it; return False in the test process.

        ``nextitem`` is the test whose container the launcher can create meanwhile.
        """
        self._originals.compare()
        with self._originals:
            container = self._start_container(nextitem)
        self.item.ihook.pytest_sandbox_started(item=self.item, container=container)
        with self._originals:
            return self._fork_into(container, recorded_warnings)

    def _fork_into(self, container: Container, recorded_warnings: ExitStack) -> bool:
        artifacts.prepare(self.item)
        checker = MessageChecker(self.item)
        channel, output = ReportChannel(), CapturedOutput(self.item.config)
        self._timeouts = PluginTimeouts(self.item)
        coverage_data.before_fork()
        self._timeouts.stop()
        prepared = test_process.TestProcess(
            self.item, channel, output, self._timeouts, self._forwarder, self._originals
        )
        started = time.time()
        child = self._fork(container, channel, output)
        if child is None:
            self.item.stash[IN_TEST_PROCESS] = True
            self.test_process = prepared
            for run in _open_runs:
                run.abandon()
            prepared.begin(recorded_warnings.pop_all())
            return False
        output.inherited.in_parent()
        may_debug = _may_debug(self.item.config)
        receiver = channel.in_parent(child, checker, output.inherited, may_debug=may_debug)
        for limit in (container.settings.timeout, self._timeouts.limit):
            if limit is not None:
                receiver.limit(limit)
        self._run = _Run(child, receiver, channel, output, started)
        return True

    def _start_container(self, nextitem: pytest.Item | None) -> Container:
        with as_test_result(self.item.config):
            settings = service_fixtures.start_for(self.item, self.item.stash[SETTINGS])
            self._container = container = Container(settings)
            container.handle.label = self.item.nodeid
            if container.settings.image != "host":
                container.handle.directories = python_home.directories(self.item.config)
            container.start()
            self._prepare_next(nextitem)
        return container

    def _prepare_next(self, nextitem: pytest.Item | None) -> None:
        """Have the next test's container created while this test runs, if its settings differ: the
        launcher prepares one with the same settings anyway.

        An error is that of the next test, which tries again.
        """
        following = None if nextitem is None else nextitem.stash.get(SETTINGS, None)
        if (
            following is not None
            and following != self.item.stash[SETTINGS]
            and following.image == "host"
        ):
            with suppress(SandboxError, OSError):
                prepare(following)

    def _fork(
        self, container: Container, channel: ReportChannel, output: CapturedOutput
    ) -> Child | None:
        """Fork into the container; return None in the child. Close everything if that fails."""
        child = None
        locks = HeldLocks()
        try:
            with as_test_result(self.item.config):
                child = fork_into(container.handle, container.settings.user)
        except BaseException:
            locks.release()
            channel.close_both_ends()
            output.close()
            self._timeouts.restart()
            raise
        if child is not None:
            locks.release()
        return child

    # -- the wait

    @property
    def receiver(self) -> Receiver | None:
        """What the test process has reported so far; None if it was not started, or its end was
        noted.
        """
        return None if self._run is None or self._run.outcome else self._run.receiver

    @property
    def report_bytes(self) -> int:
        """The bytes that the test process has reported."""
        return 0 if self._run is None else self._run.receiver.size

    def note_end(self) -> None:
        """Note how the test process has ended."""
        assert self._run is not None
        self._run.end()

    # -- setup: its collectors are set up by now

    def set_turn(self, nextitem: pytest.Item | None, wait: Callable[[SandboxedTest], None]) -> None:
        """Prepare the item's turn in the parent: ``wait`` returns when the end of a test was
        noted.
        """
        self._nextitem, self._wait = nextitem, wait
        self.replace_phases()

    def _set_up(self) -> None:
        __tracebackhide__ = True
        if self.test_process is not None:  # it was started early
            recorded = self.test_process.recorded_warnings
            recorded.enter_context(compat.recorded_warnings(self.item))
            self.restore_phases()
            self.item.setup()
            return
        if self.result is not None:  # an earlier try, by a plugin that repeats tests
            self.close()
        self.result = None
        compat.set_up_higher(self.item)
        if self._run is not None:  # it was started early, before fixtures of other tests
            self._originals.compare()
        elif not self._start_in_setup():
            self.restore_phases()
            self.item.setup()
            return
        try:
            self._wait(self)
        finally:
            self._timeouts.restart()
        with self._originals:
            self.result = self._read_result()
        try:
            self._finish_setup()
        except Exception:
            self.result = None  # a hook has raised: that is the result of the setup phase
            raise
        self._raise_error("setup")

    def _start_in_setup(self) -> bool:
        """Start the test at its turn; return False in the test process."""
        with ExitStack() as recording:
            recording.enter_context(compat.recorded_warnings(self.item))
            return self._start(self._nextitem, recording)

    def _read_result(self) -> results.TestResult:
        run, container = self._run, self._container
        assert run is not None
        assert run.outcome is not None
        assert container is not None
        times = (run.started, run.ended)
        return results.TestResult(
            self.item, container, run.receiver, run.outcome, times, run.captured
        )

    def _finish_setup(self) -> None:
        """Apply what the test has changed in the session, and complete its reports."""
        assert self.result is not None
        assert self._run is not None
        receiver = self._run.receiver
        with self._originals:
            session_state.apply(self.item, receiver)
            benchmarks.merge(self.item, receiver)
            coverage_data.merge(receiver)
        self.item.ihook.pytest_sandbox_outcome(
            item=self.item, outcome=self.result.outcome, stats=self.result.stats
        )
        with self._originals:
            self.result.add_details()
        carry.deliver(self.item, receiver)
        if receiver.interrupted:
            raise KeyboardInterrupt
        self._exit_session("setup")

    # -- call and teardown

    def _log_subtests(self) -> None:
        """Log the reports of subtests: the test itself has run."""
        __tracebackhide__ = True
        assert self.result is not None
        for report in self.result.logged:
            self.item.ihook.pytest_runtest_logreport(report=report)
        self._exit_session("call")
        self._raise_error("call")

    def _tear_down(self) -> None:
        """Discard the container; in the test process, run the item's own teardown."""
        __tracebackhide__ = True
        if self.test_process is not None:
            self._item_teardown()
            return
        container = self._container
        with self._originals:
            is_running = container is not None and container.status in ("running", "paused")
        if is_running:
            try:
                self.item.ihook.pytest_sandbox_discard(item=self.item, container=container)
            finally:
                self.close()
        self._exit_session("teardown")
        self._raise_error("teardown")

    def _raise_error(self, when: str) -> None:
        """Raise the exception of a phase."""
        __tracebackhide__ = True
        found = None if self.result is None else self.result.phases.get(when)
        if found is not None:
            found.raise_error()

    def _repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *style: Any) -> Any:
        """Return the text of an exception of the test process, for a plugin that makes a report of
        its own.
        """
        found = None if self.result is None else self.result.longrepr_of(excinfo.value)
        return self._item_repr_failure(excinfo, *style) if found is None else found

    def _exit_session(self, when: str) -> None:
        """End the session if the test has called ``pytest.exit()`` in this phase."""
        if self.result is not None and self.result.exit is not None:
            phase, reason, status = self.result.exit
            if phase == when:
                pytest.exit(reason, status)

    def close(self) -> None:
        """Close the container.

        The kernel ends a PID namespace only when the test process, a child of this one, has been
        waited for (pid_namespaces(7)).
        """
        with self._originals:
            run, self._run = self._run, None
            if run is not None:
                if run.outcome is None:  # the session ends before the test
                    run.child.kill()
                run.close()
                run.child.wait(_EXIT_TIMEOUT)
            if self._container is not None:
                self._container.close()
                self._container = None
            service_fixtures.stop_for(self.item)

    def phase_result(self, call: pytest.CallInfo[Any]) -> results.PhaseResult | None:
        """Return what the test process has reported for the phase of a call; None if pytest should
        make the report: in the test process, before the fork, and when the parent's own teardown
        has failed.
        """
        if self.test_process is not None or self.result is None:
            return None
        found = self.result.phase(call.when)
        if found is None or call.when != "teardown" or call.excinfo is None:
            return found
        return found if found.is_error_of(call) else None


def _may_debug(config: pytest.Config) -> bool:
    """Tell whether a debugger may suspend the timeout: it was requested, or the session is
    interactive. Otherwise a test could suspend its own.
    """
    if config.getoption("usepdb", default=False) or config.getoption("trace", default=False):
        return True
    return compat.is_at_terminal(config)
