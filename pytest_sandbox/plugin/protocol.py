"""The parent's side of a test that runs in a container.

Fixtures of a scope above function are set up in the parent, as without a sandbox. Function-scoped
fixtures, the test and their teardown run in a fork that enters a container: the test process
(test_process.py).

The parent goes through the ordinary phases, run by pytest or by a plugin that repeats tests. In
each, it answers with what the test process has reported, so that other plugins see the same phases
and reports as without a sandbox. The fork happens in the parent's setup phase, which waits for the
end of the test process. The test process continues in that same setup phase, with the hook wrappers
of every plugin around it. The two processes never use at the same time what they share.

With a wider ``scope``, the fork happens at the first test of the scope, and later tests run in the
same test process (running.py).

========  =======================================================  =================================
phase     parent                                                   test process
========  =======================================================  =================================
setup     hooks, collectors, higher fixtures, container, fork,     function fixtures, report
          wait, apply changes of the session (session_state.py)
call      log reports of subtests                                  test, report
teardown  discard the container, tear down higher fixtures         function fixtures, report,
                                                                   changes, coverage, end
========  =======================================================  =================================

With ``--sandbox-jobs`` the fork may happen before the test's turn (jobs.py); the test process then
runs all phases from the beginning.

selection.py calls :func:`register` when at least one test runs inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.container.fork import forks
from pytest_sandbox.plugin import (
    adapters,
    compat,
    compat_fixtures,
    crash_report,
    jobs_option,
    outside_services,
    report_sections,
    scopes,
)
from pytest_sandbox.plugin.captured_output import flush_terminal
from pytest_sandbox.plugin.error_frames import without_own_frames
from pytest_sandbox.plugin.hook_forwarder import HookForwarder
from pytest_sandbox.plugin.interrupted_tests import InterruptedTests
from pytest_sandbox.plugin.jobs import Scheduler
from pytest_sandbox.plugin.originals import Originals
from pytest_sandbox.plugin.sandboxed_test import TEST, SandboxedTest
from pytest_sandbox.plugin.slow_tests import SlowTests
from pytest_sandbox.plugin.stash import INSIDE, PROCESS
from pytest_sandbox.plugin.status_line import StatusLine
from pytest_sandbox.plugin.timeouts import TimeoutObserver

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["NAME", "register"]

#: The name of the plugin that runs tests inside.
NAME = "sandbox-inside"


def register(config: pytest.Config) -> tuple[HookForwarder, Originals]:
    """Register the plugins that run tests inside; return what a test process needs of them."""
    forwarder, originals = HookForwarder(config), Originals()
    config.pluginmanager.register(forwarder, f"{NAME}-forwarder")
    observer = TimeoutObserver(forwarder.announce_timeout)
    config.pluginmanager.register(observer, f"{NAME}-timeouts")
    jobs = jobs_option.choose(config)
    status_line = StatusLine(config, jobs)
    interrupted = InterruptedTests(config)
    if jobs > 1:
        config.pluginmanager.register(interrupted, f"{NAME}-interrupted")
    scheduler = Scheduler(forwarder, originals, SlowTests(config), status_line, interrupted, jobs)
    config.pluginmanager.register(_OuterHooks(config, scheduler, originals), NAME)
    config.pluginmanager.register(_InnerHooks(), f"{NAME}-reports")
    adapters.register(config)
    return forwarder, originals


class _OuterHooks:
    """The outermost wrappers of pytest's hooks."""

    def __init__(self, config: pytest.Config, scheduler: Scheduler, originals: Originals) -> None:
        self._scheduler = scheduler
        self._originals = originals
        self._exception_interact = compat.RestrictedHook(config, "pytest_exception_interact", ())

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        """Discard the tests whose turn did not come, before fixtures are torn down."""
        try:
            return (yield)
        except KeyboardInterrupt:
            self._scheduler.note_interrupt()
            raise
        finally:
            self._scheduler.discard()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """Run a test inside, if selection.py has decided so."""
        if PROCESS in item.stash:  # a later test of this test process
            process = item.stash[PROCESS]
            try:
                yield
            except BaseException as error:
                if process.leave(error):
                    raise
            else:
                process.leave(None)
            process.serve()
        if not item.stash.get(INSIDE, False):
            self._scheduler.begin_turn_outside(item)
            return (yield)
        with self._originals:
            flush_terminal()
            forks.gather()  # between tests, so that it adds to no test's duration
        return (yield from self._run(item, nextitem))

    def _run(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """Run a test in its turn; in a test process that begins there, leave it for good."""
        scopes.note_filters(item.session)
        test = self._scheduler.begin_turn(item, nextitem)
        result = None
        try:
            result = yield
        except BaseException as error:
            if test.test_process is None or test.test_process.leave(error):
                raise
        else:
            if test.test_process is not None:
                test.test_process.leave(None)
        finally:
            if test.test_process is None:
                self._exception_interact.restore()
                test.restore_phases()
                test.close()
                del item.stash[TEST]
                outside_services.forget(item)
        if test.test_process is not None:
            test.test_process.serve()
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        """Have the test process run the other phases itself: whoever runs the parent's protocol,
        and whatever it does after the setup phase.
        """
        __tracebackhide__ = True
        start = pytest.CallInfo.from_call(lambda: None, "setup")
        result, error = None, None
        try:
            result = yield
        except BaseException as raised:
            if PROCESS not in item.stash:
                raise
            error = raised  # later exceptions are not raised during its handling
        if PROCESS in item.stash:
            item.stash[PROCESS].run(start, error)  # does not return
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, None, None]:
        """End a scope in the teardown phase of its last test.

        Before the first test of one, tear down in the parent what its process creates itself.
        """
        __tracebackhide__ = True
        if PROCESS in item.stash:
            return (yield)
        report_sections.note_captured(item)
        test = item.stash.get(TEST, None)
        error = None if test is None else test.before_teardown(nextitem)
        try:
            yield
        except (Exception, BaseExceptionGroup, pytest.fail.Exception, pytest.skip.Exception) as own:
            if error is None or isinstance(own, pytest.exit.Exception):
                raise
            raise BaseExceptionGroup("errors during test teardown", [own, error]) from None
        finally:
            if nextitem is not None and not scopes.share(item, nextitem):
                inside = [] if scopes.is_fresh(nextitem) else scopes.nodes_inside(nextitem)
                if inside:
                    compat_fixtures.tear_down_from(inside[0])
        if error is not None:
            raise error

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Return the report of the test process.

        Other plugins' implementations run in both processes. What they change in the report counts
        only in the test process, but for private attributes that are not data.
        """
        self._exception_interact.restore()
        test = item.stash.get(TEST, None)
        if call.excinfo is not None:
            call.excinfo = without_own_frames(call.excinfo)
        reported = None if test is None else test.phase_result(call)
        if test is None or reported is None:
            report = yield
            if test is not None:
                _complete_teardown(test, report, call)
            return report
        call.excinfo = reported.excinfo(call)
        if call.excinfo is not None:  # pytest_exception_interact was called in the test process
            self._exception_interact.restrict()
        result = test.result
        if call.when == "teardown":
            report_sections.add_outer_output(item, reported.report)
        try:
            changed = yield
        except Exception as error:
            if call.excinfo is None:
                raise
            problem = f"a hook raises {type(error).__name__} for its exception"
            reported.fail(crash_report.invalid_report(problem))
            return reported.report
        if test.result is not result:
            # A plugin that has run the test again meanwhile has put the new result into the report.
            return changed
        reported.adopt_private(changed)
        return reported.report


class _InnerHooks:
    """The innermost implementation: its result is what the wrappers of other plugins get."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Run no phase again in the test process."""
        _end_repetition(item)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        """Run no phase again in the test process."""
        _end_repetition(item)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> pytest.TestReport | None:
        """Return a copy of the report of the test process."""
        test = item.stash.get(TEST, None)
        reported = None if test is None else test.phase_result(call)
        return None if reported is None else reported.copy_report()


def _complete_teardown(
    test: SandboxedTest, report: pytest.TestReport, call: pytest.CallInfo[None]
) -> None:
    """Complete the report of a teardown that has failed in the parent, with what the test process
    has printed. That begins with what was printed before the fork.
    """
    if report.when != "teardown":
        return
    phases = {} if test.result is None else test.result.phases
    if "teardown" in phases:
        report.sections = list(phases["teardown"].report.sections)
        report_sections.add_outer_output(test.item, report)
    _, longrepr, _ = test.torn_down
    is_its_error = call.excinfo is not None and call.excinfo.value is test.torn_down.error
    # The text of a skip is a tuple.
    if is_its_error and isinstance(report.longrepr, tuple) is isinstance(longrepr, tuple):
        report.longrepr = longrepr


def _end_repetition(item: pytest.Item) -> None:
    if PROCESS in item.stash:
        item.stash[PROCESS].leave_repeating_to_parent()
