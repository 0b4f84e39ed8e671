"""The test process: a fork of pytest in a container, which runs one test or those of a scope.

protocol.py forks it within the setup phase. It sets up the function-scoped fixtures, runs the test
and tears it down. It sends the report of each phase, then changes of the session, measurements and
coverage, to its parent (report_channel.py). Then it ends by ``os._exit()``, so that nothing of the
parent's session runs twice.

A process that tests share (scopes.py) leaves the hooks of the first test by an exception, to
:meth:`TestProcess.serve`. There it waits for the name of the next test and runs its protocol, with
the hook wrappers of every plugin. It waits after each test, so that the parent can read what the
test has used, and can decide after a failure.
"""

from __future__ import annotations

import bdb
import gc
import os
import random
import sys
import unittest
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_sandbox.container import values
from pytest_sandbox.plugin import (
    benchmarks,
    carry,
    compat,
    compat_fixtures,
    connection_calls,
    coverage_data,
    hints,
    outside_services,
    scopes,
    session_state,
    truncate,
)
from pytest_sandbox.plugin.error_frames import without_own_frames
from pytest_sandbox.plugin.report_attributes import encode_attributes
from pytest_sandbox.plugin.report_schema import KNOWN
from pytest_sandbox.plugin.stash import IN_TEST_PROCESS, PROCESS

if TYPE_CHECKING:
    from contextlib import ExitStack

    from pytest_sandbox.plugin.captured_output import CapturedOutput
    from pytest_sandbox.plugin.hook_forwarder import HookForwarder
    from pytest_sandbox.plugin.originals import Originals
    from pytest_sandbox.plugin.report_channel import ReportChannel
    from pytest_sandbox.plugin.timeouts import PluginTimeouts

__all__ = ["TestProcess", "exit_process"]

#: How a process ends that must not return into the parent's session, whatever the test or a fixture
#: has put in place of it.
exit_process = os._exit
_PHASES = ("setup", "call", "teardown")
_SKIPS = (pytest.skip.Exception, unittest.SkipTest)
#: The attributes of a report that pytest itself sets; newer versions have others.
_PLAIN = vars(pytest.TestReport("a.py::b", ("a.py", 0, "b"), {}, "passed", None, "call")).keys()

_Exit: Any = pytest.exit.Exception


class _Unwound(_Exit):  # type: ignore[misc]
    """Raised to leave the frames of a test after which another one may follow.

    Of the class that pytest.exit() raises, since whoever runs a test lets that pass.
    """


class TestProcess:
    """The test process, as an object that protocol.py creates in the parent before the fork.

    What can be prepared there is: a child has to copy each page of memory that it writes to.
    """

    def __init__(
        self,
        item: pytest.Item,
        channel: ReportChannel,
        output: CapturedOutput,
        timeouts: PluginTimeouts,
        forwarder: HookForwarder,
        originals: Originals,
    ) -> None:
        self._item = item
        self._channel = channel
        self._output = output
        self._timeouts = timeouts
        self._forwarder = forwarder
        self._originals = originals
        self._random_state = random.getstate()
        self._keywords = dict.fromkeys(item.keywords, 1)
        self._inside = scopes.nodes_inside(item)
        self._finalizers = compat_fixtures.OuterFinalizers(item, self._inside)
        self._hooks = [
            compat.RestrictedHook(
                item.config, "pytest_runtest_logreport", (item.session, forwarder)
            ),
            compat.RestrictedHook(item.config, "pytest_warning_recorded", (forwarder,)),
            compat.RestrictedHook(item.config, "pytest_runtest_logstart", ()),
        ]
        self._session_state = session_state.SessionState(item)
        self._benchmarks = benchmarks.BenchmarkSender(item)
        self._coverage = coverage_data.CoverageSender()
        self._carry = carry.CarrySender(item)
        self._connections = connection_calls.ConnectionCalls(item)
        self._reported_call: pytest.CallInfo[Any] | None = None
        # Whether the next test, if any, may run here.
        self._goes_on = bool(self._inside)
        self._failures = item.session.testsfailed
        #: The test for which fixtures were kept.
        self._kept_for: pytest.Item | None = None
        self._is_serving = self._is_unwinding = False

    def begin(self, recorded_warnings: ExitStack) -> None:
        """Turn the process into a test process, directly after the fork.

        Closing ``recorded_warnings`` announces the warnings that are recorded until then.
        """
        self._channel.in_child()
        # Moves all objects to the oldest generation, so that the next collections touch, and so
        # copy, no page that is shared with the parent. Unfreezing leaves them there, where
        # gc.get_referrers() finds them, as it does without a fork.
        gc.freeze()
        gc.unfreeze()
        random.setstate(self._random_state)  # random.py reseeds it after a fork
        self.recorded_warnings = recorded_warnings
        self._output.in_child(self._channel.wake_writer)
        compat.close_worker_streams(self._item.config)
        self._timeouts.in_child()
        self._finalizers.drop()
        self._forwarder.channel = self._channel
        self._forwarder.scope = scopes.scope_of(self._item)
        self._item.stash[IN_TEST_PROCESS], self._item.stash[PROCESS] = True, self
        outside_services.enter(self._item)
        for hook in self._hooks:
            hook.restrict()
        self._coverage.begin()
        self._connections.begin()
        self._inodes_before = _used_inodes()

    # -- the phases

    def run(self, start: pytest.CallInfo[None], error: BaseException | None) -> NoReturn:
        """Report the setup phase, which has ended, and run the others; do not return.

        ``start`` is a call at the start of the setup phase, ``error`` its exception.
        """

        def end_setup() -> None:
            __tracebackhide__ = True
            if error is not None:
                raise error

        try:
            call = pytest.CallInfo.from_call(end_setup, "setup", reraise=(pytest.exit.Exception,))
            call.start, call.duration = start.start, call.stop - start.start
            report = self._report(call)
            if report.passed and not self._item.config.getoption("setuponly", default=False):
                self._run_phase("call", self._item.ihook.pytest_runtest_call)
            self._end_test()
        except _Unwound:
            raise
        except BaseException as raised:  # noqa: BLE001 - may not return into the parent's session
            self.end(raised)

    def _end_test(self) -> NoReturn:
        self._kept_for = self._following()
        hook = self._item.ihook.pytest_runtest_teardown
        self._run_phase("teardown", hook, nextitem=self._kept_for)
        if not self._is_serving:
            if self._kept_for is None:
                self._send_end()
                self._exit(0)
            self.recorded_warnings.close()
            self._forwarder.channel = None  # the parent announces what was recorded before
        self._is_unwinding = True
        raise _Unwound("the test has ended")

    # -- further tests in the same process

    def _following(self) -> pytest.Item | None:
        """Return the test for which this process may keep fixtures, and wait."""
        session = self._item.session
        if not self._goes_on or session.shouldstop or session.shouldfail:
            return None
        return scopes.following(self._item)

    def leave(self, error: BaseException | None) -> bool:
        """Release what a test's protocol has used, which has ended by ``error`` (it must never
        return); tell whether to raise that further, to serve(), or to call serve().

        What the test has used, such as a connection, is released when it ends, as it is without a
        container: not at a garbage collection, and not at the end of the scope.
        """
        if error is None:
            self._exit(1)
        if not self._is_unwinding:
            self.end(error)
        compat_fixtures.release_request(self._item)
        _forget_frames(error)
        return self._is_serving

    def serve(self) -> NoReturn:
        """Run tests for as long as the parent names one, after the first one has ended."""
        try:
            self._is_serving = True
            self._forwarder.channel = self._channel
            self._send_end()
            while self._kept_for is not None and (index := self._channel.next_word()) is not None:
                items = self._item.session.items
                if index < 0:
                    self._tear_down_rest(items[~index])
                else:
                    self._run_test(items[index])
                    self._send_end()
            if self._kept_for is not None:
                self._tear_down_rest(None)
        except BaseException as raised:  # noqa: BLE001 - may not return into the parent's session
            self.end(raised)
        self._exit(0)

    def _run_test(self, item: pytest.Item) -> None:
        self._item, self._is_unwinding = item, False
        self._keywords = dict.fromkeys(item.keywords, 1)
        item.stash[IN_TEST_PROCESS], item.stash[PROCESS] = True, self
        assert self._channel.words is not None
        outside_services.adopt(item, self._channel.words.services)
        outside_services.enter(item)
        self._session_state = session_state.SessionState(item)
        self._benchmarks = benchmarks.BenchmarkSender(item)
        self._carry = carry.CarrySender(item)
        self._inodes_before = _used_inodes()
        try:
            item.ihook.pytest_runtest_protocol(item=item, nextitem=self._following())
        except _Unwound as unwound:
            _forget_frames(unwound)
            return
        self._exit(1)

    def _tear_down_rest(self, following: pytest.Item | None) -> None:
        """Tear down what the next test would have used, except for what ``following`` needs: the
        parent has skipped the tests before it, or runs none here.
        """
        self._kept_for = following
        item = self._item
        self._session_state = session_state.SessionState(item)
        nothing = pytest.CallInfo.from_call(lambda: None, "teardown")
        before = len(pytest.TestReport.from_item_and_call(item, nothing).sections)
        self.recorded_warnings.enter_context(compat.recorded_warnings(item))
        with compat.captured_teardown(item):
            call = pytest.CallInfo.from_call(
                lambda: compat_fixtures.tear_down_to(item.session, following),
                when="teardown",
                reraise=(pytest.exit.Exception,),
            )
        if call.excinfo is not None:
            call.excinfo = without_own_frames(call.excinfo)
        report = pytest.TestReport.from_item_and_call(item, call)
        del report.sections[:before]
        self._send_report(call, report)
        self._send_end()

    def _run_phase(self, when: Any, hook: Any, **arguments: Any) -> None:
        self._report(
            pytest.CallInfo.from_call(
                lambda: hook(item=self._item, **arguments), when, reraise=(pytest.exit.Exception,)
            )
        )

    def _report(self, call: pytest.CallInfo[Any]) -> pytest.TestReport:
        self._reported_call = call
        hook = self._item.ihook
        report: pytest.TestReport = hook.pytest_runtest_makereport(item=self._item, call=call)
        self._reported_call = None
        self._send_report(call, report)
        return report

    def leave_repeating_to_parent(self) -> None:
        """End the test if a plugin has begun to run its phases again, while it was asked for the
        report of one (pytest-retry): it does so in the parent too, where each run gets a container
        of its own.
        """
        if self._is_unwinding:
            raise _Unwound("the test has ended")
        call, self._reported_call = self._reported_call, None
        if call is not None and self._forwarder.report is not None:
            self._send_report(call, self._forwarder.report)
            self._end_test()

    def _send_report(self, call: pytest.CallInfo[Any], report: pytest.TestReport) -> None:
        error = None if call.excinfo is None else call.excinfo.value
        self._originals.compare()
        with self._originals:
            if self._is_plain(report):
                times = [report.start, report.stop, report.duration]
                self._channel.send("passed", [report.when, *times])
                return
            serialized, problem = self._serialized(report)
            sent = pytest.fail.Exception(problem, pytrace=False) if problem else error
            data = {
                "report": serialized,
                "error": None if sent is None else _encoded(sent),
                "symptoms": hints.symptoms(error) if report.failed else [],
            }
            self._channel.send("report", truncate.truncated_report(data, report))
            if report.failed:
                self._note_failure(error)
        if error is not None and _interests_debugger(error, report):
            self._item.ihook.pytest_exception_interact(node=self._item, call=call, report=report)

    def _is_plain(self, report: pytest.TestReport) -> bool:
        """Tell whether a report is that of a phase which has passed, and nothing else: the parent
        can make it from its times.
        """
        return (
            report.outcome == "passed"
            and type(report) is pytest.TestReport
            and vars(report).keys() == _PLAIN
            and not (report.sections or report.user_properties or report.longrepr)
            and report.when in _PHASES
            and all(type(one) is float for one in (report.start, report.stop, report.duration))
            and report.keywords == self._keywords
            and self._forwarder.is_serialized_by_pytest
        )

    def _note_failure(self, error: BaseException | None) -> None:
        """Keep no fixtures for a next test where the session ends: at ``--maxfail``, or Ctrl-C."""
        self._failures += 1
        maxfail = self._item.config.getvalue("maxfail")
        if isinstance(error, KeyboardInterrupt) or (maxfail and self._failures >= maxfail):
            self._goes_on = False

    def _serialized(self, report: pytest.TestReport) -> tuple[dict[str, Any], str]:
        """Return the report as data, with the test's own ID: a hook may have changed it; and why it
        is a failure now, if it has an attribute that is not data.
        """
        if report.failed and report.longrepr is None:  # a hook has set the outcome
            report.longrepr = ""
        config = self._item.config
        data = config.hook.pytest_report_to_serializable(config=config, report=report)
        data.update(nodeid=self._item.nodeid, location=self._item.location)
        problem = encode_attributes(data, KNOWN)
        if not problem:
            return data, ""
        data["sections"] = [*data["sections"], ("invalid attribute", problem)]
        if report.failed:
            return data, ""
        report.outcome, report.longrepr = "failed", problem
        data.update(outcome=report.outcome, longrepr=problem)
        data.pop("wasxfail", None)
        return data, problem

    def _send_end(self) -> None:
        with self._originals:
            self.recorded_warnings.close()
            self._session_state.send(self._channel)
            self._benchmarks.send(self._channel)
            self._coverage.send(self._channel)
            self._carry.send(self._channel)
            self._connections.send(self._channel)
            _flush()
            has_created_files = _used_inodes() > self._inodes_before
            is_waiting = self._kept_for is not None
            self._channel.send("done", [has_created_files, is_waiting], wake=True)

    # -- the end

    def end(self, error: BaseException) -> NoReturn:
        """End because of an exception that no phase has caught: the request to end the session, or
        an error in a plugin.
        """
        with suppress(BaseException):
            self._originals.compare()
            if isinstance(error, pytest.exit.Exception):
                self._kept_for = None
                self._channel.send("exit", [error.msg, error.returncode])
                compat_fixtures.tear_down_item(self._item)
                self._send_end()
                self._exit(0)
            with self._originals:
                traceback = values.encode_exception(error)["traceback"]
                self._channel.send("internal", truncate.truncated(traceback))
        self._exit(1)

    @staticmethod
    def _exit(status: int) -> NoReturn:
        _flush()
        exit_process(status)


def _forget_frames(error: BaseException) -> None:
    """Remove what an exception refers to: some of its frames have a variable that refers to it, so
    that all of them would stay until the next garbage collection.
    """
    error.__traceback__ = error.__context__ = None


def _used_inodes() -> int:
    """Return how many inodes the writable layer's file system uses: it grows when files are
    created.
    """
    status = os.statvfs("/")
    return status.f_files - status.f_ffree


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with suppress(BaseException):
            stream.flush()  # type: ignore[union-attr]


def _encoded(error: BaseException) -> Any:
    """Return an exception as data; without its traceback if it skips a test, where nobody sees
    it.
    """
    return values.encode_exception(error, with_traceback=not isinstance(error, _SKIPS))


def _interests_debugger(error: BaseException, report: pytest.TestReport) -> bool:
    """Tell whether ``--pdb`` starts a debugger: not for an expected failure or a skip."""
    return not hasattr(report, "wasxfail") and not isinstance(error, (*_SKIPS, bdb.BdbQuit))
