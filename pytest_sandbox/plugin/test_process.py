"""The test process: a fork of pytest in a container, which runs one test.

protocol.py forks it within the setup phase. It sets up the function-scoped fixtures, runs the test
and tears it down. It sends the report of each phase, then changes of the session, measurements and
coverage, to its parent (report_channel.py). Then it ends by ``os._exit()``, so that nothing of the
parent's session runs twice.
"""

from __future__ import annotations

import bdb
import gc
import os
import random
import sys
import sysconfig
import unittest
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_sandbox.container import values
from pytest_sandbox.plugin import (
    benchmarks,
    carry,
    compat,
    connection_calls,
    coverage_data,
    hints,
    session_state,
    truncate,
)
from pytest_sandbox.plugin.report_attributes import encode_attributes
from pytest_sandbox.plugin.report_schema import KNOWN

if TYPE_CHECKING:
    import warnings
    from collections.abc import Generator
    from contextlib import ExitStack

    from pytest_sandbox.plugin.captured_output import CapturedOutput
    from pytest_sandbox.plugin.originals import Originals
    from pytest_sandbox.plugin.report_channel import ReportChannel
    from pytest_sandbox.plugin.timeouts import PluginTimeouts

__all__ = ["HookForwarder", "TestProcess"]


class HookForwarder:
    """A plugin that sends to the parent what other plugins log or announce in a test process.

    It is registered in the parent, because registering in each test process would take longer.
    There, ``channel`` is None, and nothing is sent.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.channel: ReportChannel | None = None
        #: The last report, as the wrappers of other plugins have got it.
        self.report: pytest.TestReport | None = None
        self._wrap_cache()

    def _wrap_cache(self) -> None:
        """Send what a test stores in ``config.cache``: no hook announces that."""
        cache = getattr(self._config, "cache", None)
        if cache is None:
            return
        original = cache.set

        def set_and_send(key: str, value: object) -> None:
            original(key, value)
            self._send("cache", [key, value])

        cache.set = set_and_send

    def announce_timeout(self, seconds: float) -> None:
        """Send the timeout of pytest-timeout, which may be set inside only."""
        self._send("timeout", seconds, wake=True)

    def _send(self, kind: str, data: Any, *, wake: bool = False) -> None:
        if self.channel is not None:
            self.channel.send(kind, data, wake=wake)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Keep the report."""
        self.report = yield
        return self.report

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Send a report that another plugin logs: that of a subtest."""
        if self.channel is not None:
            config = self._config
            data = config.hook.pytest_report_to_serializable(config=config, report=report)
            problem = encode_attributes(data, KNOWN)
            if problem:
                raise TypeError(problem)
            self._send("logged", data)

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str, location: Any
    ) -> None:
        """Send a warning."""
        if self.channel is None:
            return
        data = {
            "message": values.encode_exception(_as_warning(warning_message)),
            "filename": warning_message.filename,
            "lineno": warning_message.lineno,
            "when": when,
            "nodeid": nodeid,
            "location": location,
        }
        self._send("warning", data)

    def pytest_enter_pdb(self) -> None:
        """Suspend the timeout while a debugger waits for input."""
        self._send("debugger", data=True, wake=True)

    def pytest_leave_pdb(self) -> None:
        """Resume the timeout."""
        self._send("debugger", data=False, wake=True)

    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        """Report a fixture of a higher scope that is set up here, for this test alone: no fixture
        or mark named it, so the parent could not set it up.
        """
        if self.channel is None or fixturedef.scope == "function":
            return
        if _is_of_the_suite(fixturedef.func):
            self._send("late_fixture", [fixturedef.argname, fixturedef.scope])


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
        self._finalizers = compat.OuterFinalizers(item)
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
        except BaseException as raised:  # noqa: BLE001 - may not return into the parent's session
            self.end(raised)

    def _end_test(self) -> NoReturn:
        self._run_phase("teardown", self._item.ihook.pytest_runtest_teardown, nextitem=None)
        self._send_end()
        self._exit(0)

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
        call, self._reported_call = self._reported_call, None
        if call is not None and self._forwarder.report is not None:
            self._send_report(call, self._forwarder.report)
            self._end_test()

    def _send_report(self, call: pytest.CallInfo[Any], report: pytest.TestReport) -> None:
        error = None if call.excinfo is None else call.excinfo.value
        self._originals.compare()
        with self._originals:
            serialized, problem = self._serialized(report)
            sent = pytest.fail.Exception(problem, pytrace=False) if problem else error
            data = {
                "report": serialized,
                "error": None if sent is None else values.encode_exception(sent),
                "symptoms": hints.symptoms(error) if report.failed else [],
            }
            self._channel.send("report", truncate.truncated_report(data, report))
        if error is not None and _interests_debugger(error, report):
            self._item.ihook.pytest_exception_interact(node=self._item, call=call, report=report)

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
            self._channel.send("done", _used_inodes() > self._inodes_before, wake=True)

    # -- the end

    def end(self, error: BaseException) -> NoReturn:
        """End because of an exception that no phase has caught: the request to end the session, or
        an error in a plugin.
        """
        with suppress(BaseException):
            self._originals.compare()
            if isinstance(error, pytest.exit.Exception):
                self._channel.send("exit", [error.msg, error.returncode])
                compat.tear_down_item(self._item)
                self._send_end()
                self._exit(0)
            with self._originals:
                traceback = values.encode_exception(error)["traceback"]
                self._channel.send("internal", truncate.truncated(traceback))
        self._exit(1)

    @staticmethod
    def _exit(status: int) -> NoReturn:
        _flush()
        os._exit(status)


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


def _is_of_the_suite(function: Any) -> bool:
    """Tell whether a fixture is defined by the suite, not by pytest or an installed plugin: those
    request fixtures of their own by getfixturevalue().
    """
    code = getattr(function, "__code__", None)
    return code is not None and not code.co_filename.startswith(
        (sysconfig.get_path("purelib"), os.path.dirname(pytest.__file__))
    )


def _as_warning(recorded: warnings.WarningMessage) -> Warning:
    message = recorded.message
    return message if isinstance(message, Warning) else recorded.category(message)


def _interests_debugger(error: BaseException, report: pytest.TestReport) -> bool:
    """Tell whether ``--pdb`` starts a debugger: not for an expected failure or a skip."""
    return not hasattr(report, "wasxfail") and not isinstance(
        error, (pytest.skip.Exception, bdb.BdbQuit, unittest.SkipTest)
    )
