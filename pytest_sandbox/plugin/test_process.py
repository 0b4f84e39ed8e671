"""A test's own process, in its container: setup's end, body and teardown, told to the parent phase
by phase; then it ends without a trace.
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
from pytest_sandbox.plugin import benchmarks, compat, coverage_data, hints, session_state, truncate

if TYPE_CHECKING:
    import warnings
    from contextlib import ExitStack

    from pytest_sandbox.plugin.captured_output import Streams
    from pytest_sandbox.plugin.report_channel import Wire
    from pytest_sandbox.plugin.timeouts import Timer

__all__ = ["Fork", "Relay"]


class Relay:
    """Hears in a fork what other plugins log or announce; registered in the parent, where it passes
    nothing on, since registering takes time.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.wire: Wire | None = None
        self._hear_cache()

    def _hear_cache(self) -> None:
        """Hear what a test gives to the cache."""
        cache = getattr(self.config, "cache", None)
        if cache is None:
            return
        write = cache.set

        def write_and_send(key: str, value: object) -> None:
            write(key, value)
            self.send("cache", [key, value])

        cache.set = write_and_send

    def send(self, kind: str, data: Any) -> None:
        """Send, in a fork."""
        if self.wire is not None:
            self.wire.send(kind, data)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Pass on what somebody else logs: a subtest."""
        if self.wire is not None:
            self.wire.send(
                "logged",
                self.config.hook.pytest_report_to_serializable(config=self.config, report=report),
            )

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str, location: Any
    ) -> None:
        """Pass on a warning."""
        if self.wire is None:
            return
        data = {
            "message": values.encode_exception(_as_warning(warning_message)),
            "filename": warning_message.filename,
            "lineno": warning_message.lineno,
            "when": when,
            "nodeid": nodeid,
            "location": location,
        }
        self.wire.send("warning", data)

    def pytest_enter_pdb(self) -> None:
        """Stop the clock while a person types."""
        self._tell_debugging(is_on=True)

    def pytest_leave_pdb(self) -> None:
        """Let the clock go on."""
        self._tell_debugging(is_on=False)

    def _tell_debugging(self, *, is_on: bool) -> None:
        if self.wire is not None:
            self.wire.send("debugger", is_on, ring=True)

    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        """Say that a fixture of a higher scope is made here, for this test alone, because nobody
        knew before that it would be asked for.
        """
        if (
            self.wire is not None
            and fixturedef.scope != "function"
            and _is_the_suites(fixturedef.func)
        ):
            self.wire.send("late_fixture", [fixturedef.argname, fixturedef.scope])


class Fork:
    """The fork's side of one test.

    It is made in the parent, before the fork, which has to copy each page of memory that it
    touches.
    """

    def __init__(
        self, item: pytest.Item, wire: Wire, streams: Streams, timer: Timer, relay: Relay
    ) -> None:
        self._item = item
        self._wire = wire
        self._streams = streams
        self._timer = timer
        self._relay = relay
        self._random = random.getstate()
        self._finalizers = compat.Finalizers(item)
        self._listeners = [
            compat.Listeners(item.config, "pytest_runtest_logreport", (item.session, relay)),
            compat.Listeners(item.config, "pytest_warning_recorded", (relay,)),
        ]
        self._carried = session_state.Carried(item)
        self._benchmarks = benchmarks.Benchmarks(item)
        self._measured = coverage_data.Measured()
        self._driving = False

    def begin(self, recording: ExitStack) -> None:
        """Be the fork, which records its warnings until it closes ``recording``."""
        self._wire.in_fork()
        # what is young here is old from now on: the next collections touch, and so copy, none of
        # what is shared with the parent
        gc.freeze()
        gc.unfreeze()  # but it can be found (gc.get_referrers), as without a fork
        random.setstate(
            self._random
        )  # CPython seeds it anew in a fork, and a seed that somebody chose would be lost
        self._recording = recording
        self._streams.in_fork(self._wire.stack_writer)
        compat.close_worker_streams(self._item.config)
        self._timer.in_fork()
        self._finalizers.forget()
        self._relay.wire = self._wire
        for one in self._listeners:
            one.take_over()
        self._measured.begin()
        self._inodes = _inodes()

    # -- the phases

    def made(self, call: pytest.CallInfo[Any], report: pytest.TestReport) -> pytest.TestReport:
        """Take a phase's report: with the setup's, which somebody else's protocol made, the fork
        takes over and does not come back.
        """
        if not self._driving:
            self._driving = True
            self._drive(call, report)
        return report

    def _drive(self, call: pytest.CallInfo[Any], report: pytest.TestReport) -> NoReturn:
        try:
            self._tell(call, report)
            if report.passed and not self._item.config.getoption("setuponly", default=False):
                self._phase("call", self._item.ihook.pytest_runtest_call)
            self._phase("teardown", self._item.ihook.pytest_runtest_teardown, nextitem=None)
            self._finish()
        except BaseException as error:  # noqa: BLE001 - nothing may go on from here into the parent's session
            self.end(error)
        self._leave(0)

    def _phase(self, when: Any, hook: Any, **more: Any) -> None:
        call = pytest.CallInfo.from_call(
            lambda: hook(item=self._item, **more), when=when, reraise=(pytest.exit.Exception,)
        )
        self._tell(call, self._item.ihook.pytest_runtest_makereport(item=self._item, call=call))

    def _tell(self, call: pytest.CallInfo[Any], report: pytest.TestReport) -> None:
        error = None if call.excinfo is None else call.excinfo.value
        symptoms = hints.symptoms(error) if report.failed else []
        data = {"report": self._serialised(report), "error": _encoded(error), "symptoms": symptoms}
        self._wire.send("report", truncate.fitted(data, report))
        if error is not None and _is_interactive(error, report):
            self._item.ihook.pytest_exception_interact(node=self._item, call=call, report=report)

    def _serialised(self, report: pytest.TestReport) -> Any:
        """Return the report as data: under the test's own name, whatever a hook has called it."""
        if report.failed and report.longrepr is None:  # a hook has made it fail
            report.longrepr = ""
        config = self._item.config
        data = config.hook.pytest_report_to_serializable(config=config, report=report)
        data.update(nodeid=self._item.nodeid, location=self._item.location)
        data["user_properties"] = truncate.properties(data["user_properties"])
        return data

    def _finish(self) -> None:
        self._recording.close()
        self._carried.send(self._wire)
        self._benchmarks.send(self._wire)
        self._measured.send(self._wire)
        _flush()
        self._wire.send("done", _inodes() > self._inodes, ring=True)

    # -- the ends

    def end(self, error: BaseException) -> NoReturn:
        """End because of what came through all phases: the wish to end the session, or a fault of
        somebody's plugin.
        """
        with suppress(BaseException):
            if isinstance(error, pytest.exit.Exception):
                self._wire.send("exit", [error.msg, error.returncode])
                compat.tear_down_item(self._item)
                self._finish()
                self._leave(0)
            if isinstance(error, KeyboardInterrupt) and not self._driving:
                self._interrupted_setup(error)
            self._wire.send(
                "internal", truncate.shortened(values.encode_exception(error)["traceback"])
            )
        self._leave(1)

    def _interrupted_setup(self, error: KeyboardInterrupt) -> NoReturn:
        """Report a KeyboardInterrupt that pytest's own setup phase let through."""

        def again() -> None:
            raise error

        call = pytest.CallInfo.from_call(again, when="setup", reraise=(pytest.exit.Exception,))
        self._driving = True
        self._drive(call, self._item.ihook.pytest_runtest_makereport(item=self._item, call=call))

    @staticmethod
    def _leave(status: int) -> NoReturn:
        _flush()
        os._exit(status)


def _inodes() -> int:
    """Return how many files the writable layer's file system has: more than before means that
    something was made.
    """
    status = os.statvfs("/")
    return status.f_files - status.f_ffree


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with suppress(BaseException):
            stream.flush()  # type: ignore[union-attr]


def _is_the_suites(function: Any) -> bool:
    """Tell whether a fixture is the suite's own, and not one that an installed plugin asks itself
    for.
    """
    code = getattr(function, "__code__", None)
    return code is not None and not code.co_filename.startswith(
        (sysconfig.get_path("purelib"), os.path.dirname(pytest.__file__))
    )


def _as_warning(recorded: warnings.WarningMessage) -> Warning:
    return (
        recorded.message
        if isinstance(recorded.message, Warning)
        else recorded.category(recorded.message)
    )


def _is_interactive(error: BaseException, report: pytest.TestReport) -> bool:
    """Tell whether a debugger should look at it: not at an expected failure or a skip."""
    return not hasattr(report, "wasxfail") and not isinstance(
        error, (pytest.skip.Exception, bdb.BdbQuit, unittest.SkipTest)
    )


def _encoded(error: BaseException | None) -> Any:
    return None if error is None else values.encode_exception(error)
