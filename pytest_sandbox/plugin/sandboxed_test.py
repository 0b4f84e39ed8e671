"""One test that runs in a container, as an object of both processes."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from pytest_sandbox.container.fork import fork_into
from pytest_sandbox.plugin import (
    artifacts,
    benchmarks,
    carry,
    compat,
    compat_fixtures,
    coverage_data,
    results,
    scopes,
    session_state,
    test_process,
)
from pytest_sandbox.plugin.captured_output import CapturedOutput
from pytest_sandbox.plugin.fresh import FreshStart
from pytest_sandbox.plugin.item_attributes import REPLACED
from pytest_sandbox.plugin.log_locks import HeldLocks
from pytest_sandbox.plugin.message_checker import MessageChecker
from pytest_sandbox.plugin.report_channel import ReportChannel
from pytest_sandbox.plugin.running import Running, abandon_all
from pytest_sandbox.plugin.timeouts import PluginTimeouts
from pytest_sandbox.plugin.torn_down import TornDown, add_to_teardown, torn_down
from pytest_sandbox.plugin.unsupported import as_test_result

if TYPE_CHECKING:
    from pytest_sandbox.container.container import Container
    from pytest_sandbox.container.fork import Child
    from pytest_sandbox.plugin.hook_forwarder import HookForwarder
    from pytest_sandbox.plugin.originals import Originals
    from pytest_sandbox.plugin.report_channel import Receiver

__all__ = ["TEST", "SandboxedTest"]

#: The run of a test, from the protocol's start to its end, or from an early start on.
TEST = pytest.StashKey["SandboxedTest"]()


class _Scheduler(Protocol):
    """What a test needs of jobs.Scheduler."""

    current: Running | None

    def wait(self, test: SandboxedTest) -> None: ...
    def end_current(self) -> None: ...
    def forget(self, running: Running) -> None: ...
    def has_tests_of(self, running: Running) -> bool: ...
    def tear_down_scope(self, test: SandboxedTest, nextitem: pytest.Item | None) -> TornDown: ...
    def begin_following(self, test: SandboxedTest, nextitem: pytest.Item | None) -> None: ...


class SandboxedTest:
    """One run of a test, which replaces the item's own setup, runtest and teardown.

    The object exists in both processes after the fork: ``test_process`` is None in the parent.
    """

    def __init__(self, item: pytest.Item, forwarder: HookForwarder, originals: Originals) -> None:
        self.item = item
        self._forwarder = forwarder
        self._originals = originals
        self._scope = scopes.scope_of(item)
        self._is_shared, self._is_fresh = scopes.is_shared(item), scopes.is_fresh(item)
        # The collectors that the test process sets up.
        self._inside = scopes.nodes_inside(item)
        self._item_teardown = item.teardown
        self._item_repr_failure = item.repr_failure
        self.test_process: test_process.TestProcess | None = None
        self.result: results.TestResult | None = None
        self.running: Running | None = None
        self._receiver: Receiver | None = None
        self._ended: results.Ended | None = None
        self._timeouts = PluginTimeouts(item)
        self.nextitem: pytest.Item | None = None

    def replace_phases(self) -> None:
        """Replace the functions of the item for its phases, and of the collectors that are set up
        inside.
        """
        for node in self._inside:
            node.setup = node.teardown = _nothing  # type: ignore[method-assign]
        self.item.setup = self._set_up  # type: ignore[method-assign]
        self.item.runtest = self._log_subtests  # type: ignore[method-assign]
        self.item.teardown = self._tear_down  # type: ignore[method-assign]
        self.item.repr_failure = self._repr_failure  # type: ignore[method-assign, assignment]

    def restore_phases(self) -> None:
        """Restore the functions."""
        for node in (*self._inside, self.item):
            for name in REPLACED:
                node.__dict__.pop(name, None)

    # -- the start

    def start_early(self) -> bool:
        """Start the test before its turn, between two other tests. Return False in the test
        process, which has to run the protocol of the test.

        Raises the result of a test whose container cannot start.
        """
        is_parent = self._start(None, ExitStack())
        if not is_parent:
            self.replace_phases()
            for node in self._inside:  # these are the process's own
                node.__dict__.pop("setup", None)
                node.__dict__.pop("teardown", None)
        return is_parent

    def begin_in(self, running: Running) -> None:
        """Run the test in the process of the one before it, which waits."""
        with self._originals:
            running.begin(self.item)
        self.running, self._receiver = running, running.receiver

    def _start(self, nextitem: pytest.Item | None, recorded_warnings: ExitStack) -> bool:
        """Start the container and fork into it; return False in the test process.

        ``nextitem`` is the test whose container the launcher can create meanwhile.
        """
        self._originals.compare()
        with self._originals:
            self.running = Running(self.item)
            self.running.start_container(nextitem)
        container = self.running.container
        self.item.ihook.pytest_sandbox_started(item=self.item, container=container)
        with self._originals:
            return self._fork_into(self.running, recorded_warnings)

    def _fork_into(self, running: Running, recorded_warnings: ExitStack) -> bool:
        artifacts.prepare(self.item)
        checker = MessageChecker(self.item)
        with ExitStack() as opened:  # closed if the fork fails, or an interrupt comes before it
            channel = ReportChannel(is_shared=self._is_shared)
            opened.callback(channel.close_both_ends)
            output = CapturedOutput(self.item.config)
            opened.callback(output.close)
            coverage_data.before_fork()
            self._stop_timeouts()
            opened.callback(self._timeouts.restart)
            prepared = self._prepare_process(channel, output)
            started = time.time()
            child = self._fork(running.container)
            opened.pop_all()
        if child is None:
            abandon_all()
            if isinstance(prepared, FreshStart):
                prepared.execute()
            self.test_process = prepared
            prepared.begin(recorded_warnings.pop_all())
            return False
        self._receiver = running.forked(child, channel, output, checker, started)
        if self._timeouts.limit is not None:
            self._receiver.limit(self._timeouts.limit)
        return True

    def _prepare_process(
        self, channel: ReportChannel, output: CapturedOutput
    ) -> FreshStart | test_process.TestProcess:
        if self._is_fresh:
            return FreshStart(self.item, channel, output)
        return test_process.TestProcess(
            self.item, channel, output, self._timeouts, self._forwarder, self._originals
        )

    def _stop_timeouts(self) -> None:
        self._timeouts = PluginTimeouts(self.item)
        self._timeouts.stop()

    def _fork(self, container: Container) -> Child | None:
        """Fork into the container; return None in the child."""
        child = None
        locks = HeldLocks()
        try:
            with as_test_result(self.item.config):
                child = fork_into(container.handle, container.settings.user)
        except BaseException:
            locks.release()
            raise
        if child is not None:
            locks.release()
        return child

    # -- the wait

    @property
    def receiver(self) -> Receiver | None:
        """What the test has reported so far; None if it was not started, or its end was noted."""
        return None if self._ended is not None else self._receiver

    @property
    def report_bytes(self) -> int:
        """The bytes that the test has reported."""
        return 0 if self._receiver is None else self._receiver.size

    @property
    def may_go_on(self) -> bool:
        """Whether the test has ended in a way after which its process may run the next one before
        anything else: it has passed, and nobody looks for files that it has written.
        """
        ended, running = self._ended, self.running
        if ended is None or running is None or not running.has_passed:
            return False
        return not ended.receiver.may_have_created_files or not artifacts.are_wanted(self.item)

    def note_end(self) -> None:
        """Note how the test has ended."""
        assert self.running is not None
        self._ended = self.running.note_end()

    # -- setup: its collectors are set up by now

    def set_turn(self, nextitem: pytest.Item | None, scheduler: _Scheduler) -> None:
        """Prepare the item's turn in the parent."""
        self.nextitem, self._scheduler = nextitem, scheduler
        if self._is_fresh:
            self._inside = compat_fixtures.nodes_not_set_up(self.item)
        self.replace_phases()

    def _set_up(self) -> None:
        __tracebackhide__ = True
        if self.test_process is not None:  # it was started early
            recorded = self.test_process.recorded_warnings
            recorded.enter_context(compat.recorded_warnings(self.item))
            self.restore_phases()
            self.item.setup()
            return
        if self.result is not None:
            self._forget_try()
        is_to_share = self._is_shared and self.running is None
        lacks_fixture = is_to_share and scopes.lacks_fixture(self.item)
        if not self._is_fresh and not (self._is_shared and self.running is not None):
            compat_fixtures.set_up_higher(self.item, self._scope)
        if self.running is not None:  # it was started early, before fixtures of other tests
            self._originals.compare()
            self._stop_timeouts()
        elif not self._begin_in_shared(is_new=lacks_fixture) and not self._start_in_setup():
            self.restore_phases()
            if self._inside:
                compat_fixtures.set_up_inside(self.item, self._inside)
            else:
                self.item.setup()
            return
        self._take_result()

    def _take_result(self) -> None:
        """Wait for the end of the test, and answer for its setup phase."""
        __tracebackhide__ = True
        try:
            self._scheduler.wait(self)
        finally:
            self._timeouts.restart()
        assert self.running is not None
        assert self._ended is not None
        has_files = self._ended.receiver.may_have_created_files
        if not has_files:  # what follows does not look into the container
            self._scheduler.begin_following(self, self.nextitem)
        with self._originals:
            self.result = results.TestResult(self.item, self.running.container, self._ended)
        try:
            self._finish_setup()
        except Exception:
            self.result = None  # a hook has raised: that is the result of the setup phase
            raise
        if has_files:
            self._scheduler.begin_following(self, self.nextitem)
        self._raise_error("setup")

    def _forget_try(self) -> None:
        """Forget an earlier try, by a plugin that repeats tests."""
        self.result = self._ended = self._receiver = None
        if self.running is not None and self.running is self._scheduler.current:
            self.running = None  # if it can, it runs the test again
        else:
            self._close_running()

    def _begin_in_shared(self, *, is_new: bool) -> bool:
        """Run the test where the one before it has run, unless it needs what ``is_new`` in the
        parent; return whether that is possible.
        """
        current = self._scheduler.current
        if current is not None and not is_new and current.may_run(self.item):
            self.begin_in(current)
            self._stop_timeouts()
            if self._receiver is not None and self._timeouts.limit is not None:
                self._receiver.limit(self._timeouts.limit)
            return True
        self._scheduler.end_current()
        if not self._is_fresh:
            scopes.set_up_for_following(self.item)
        return False

    def _start_in_setup(self) -> bool:
        """Start the test at its turn; return False in the test process."""
        with ExitStack() as recording:
            recording.enter_context(compat.recorded_warnings(self.item))
            is_parent = self._start(self.nextitem, recording)
        if is_parent and self._is_shared:
            self._scheduler.current = self.running
        return is_parent

    def _finish_setup(self) -> None:
        """Apply what the test has changed in the session, and complete its reports."""
        assert self.result is not None
        assert self._ended is not None
        receiver = self._ended.receiver
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
        running = self.running
        if running is not None and self._may_close(running):
            with self._originals:
                is_running = running.container.status in ("running", "paused")
            if is_running:
                try:
                    self.item.ihook.pytest_sandbox_discard(
                        item=self.item, container=running.container
                    )
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

    def before_teardown(self, nextitem: pytest.Item | None) -> str:
        """End the scope if the next test does not belong to it: a failure of its fixtures' teardown
        is one of this test. Return it if the test has no result.
        """
        if not self._is_shared or nextitem is self.item:
            return ""
        found = [self._end_skipped(), self._scheduler.tear_down_scope(self, nextitem)]
        phase = None if self.result is None else self.result.phases.get("teardown")
        return add_to_teardown(self.item, phase, found)

    def _end_skipped(self) -> TornDown:
        """Wait for a test that the parent has skipped and its process has begun; return what that
        has torn down.
        """
        if self.result is not None or self.running is None:
            return TornDown()
        self._await_skipped(self.running)
        if self._ended is None:
            return TornDown()
        with self._originals:
            return torn_down(self.item, self._ended.receiver)

    def _await_skipped(self, running: Running) -> None:
        if self._is_shared and self.receiver is not None:
            running.expect_skip()
            self._scheduler.wait(self)

    def close(self) -> None:
        """Close the container, unless a later test uses it."""
        compat_fixtures.leave_nodes(self.item.session, self._inside)
        self._close_running()

    def _close_running(self) -> None:
        running = self.running
        if running is None:
            return
        self._await_skipped(running)  # the session ends in its setup phase
        if self._may_close(running):
            self.running = None
            self._scheduler.forget(running)
            with self._originals:
                running.close()

    def drop(self) -> None:
        """Close the container, whatever runs there: the session ends before the test."""
        if self.running is not None:
            with self._originals:
                self.running.close()

    def _may_close(self, running: Running) -> bool:
        return not self._is_shared or (
            running.is_over and not self._scheduler.has_tests_of(running)
        )

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


def _nothing() -> None:
    """Replace the setup and teardown of a collector in the parent."""
