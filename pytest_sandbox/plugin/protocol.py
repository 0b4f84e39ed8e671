"""A test inside: higher-scoped fixtures in the parent; function scope, body and teardown in one
fork that joins a container.

The parent goes through the ordinary phases, whoever runs them (pytest, or a plugin that repeats
tests), and answers each with what the fork reported; so every plugin sees the phases and reports
that it would see without a sandbox. The fork happens within the parent's setup phase, which then
waits: the fork goes on with every plugin's setup wrappers around it, and the two never use what
they share at the same time.

=========  ========================================================  ======================================================
phase      parent                                                    fork
=========  ========================================================  ======================================================
setup      hooks, collectors, higher fixtures, container, fork, wait  function fixtures; report
call       answers (subtests are logged here)                         body; report
teardown   discards the container, higher fixtures as pytest does     function fixtures; report, session changes, coverage, end
=========  ========================================================  ======================================================
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.container.container import Container
from pytest_sandbox.container.fork import fork_into, forks
from pytest_sandbox.container.lifecycle import prepare
from pytest_sandbox.errors import SandboxError
from pytest_sandbox.linux import process
from pytest_sandbox.outcome import Exited, Outcome, TimedOut
from pytest_sandbox.plugin import (
    benchmarks,
    compat,
    coverage_data,
    crash_report,
    messages,
    python_home,
    results,
    session_state,
    test_process,
)
from pytest_sandbox.plugin.captured_output import Streams, flush_terminal
from pytest_sandbox.plugin.report_channel import Receiver, Wire
from pytest_sandbox.plugin.selection import FORKED, INSIDE, SETTINGS
from pytest_sandbox.plugin.timeouts import Remembering, Timer
from pytest_sandbox.plugin.unsupported import refusing

if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_sandbox.container.fork import Child

__all__ = ["register"]

_NAME = "sandbox-inside"
#: How long a fork that has said all may take to end, in seconds.
_PATIENCE = 2
_VISIT = pytest.StashKey["_Visit"]()


def register(config: pytest.Config) -> None:
    """Have tests that belong inside run there, in a session that has some."""
    if not config.pluginmanager.has_plugin(_NAME):
        relay = test_process.Relay(config)
        config.pluginmanager.register(relay, f"{_NAME}-relay")
        config.pluginmanager.register(Remembering(), f"{_NAME}-timer")
        config.pluginmanager.register(_Frame(relay), _NAME)
        config.pluginmanager.register(_Answers(), f"{_NAME}-answers")


class _Visit:
    """One test's way into a container and back: the parent until the fork, then each side; ``fork``
    is None in the parent.
    """

    def __init__(
        self, item: pytest.Item, nextitem: pytest.Item | None, relay: test_process.Relay
    ) -> None:
        self.item = item
        self._relay = relay
        self.nextitem = nextitem
        self.fork: test_process.Fork | None = None
        self.container: Container | None = None
        self.finding: results.Finding | None = None
        self._child: Child | None = None

    def take_over(self) -> None:
        """Stand in for the item's own functions, until :meth:`give_back`."""
        self._teardown = self.item.teardown
        self.item.setup = self.set_up  # type: ignore[method-assign]
        self.item.runtest = self.run_test  # type: ignore[method-assign]
        self.item.teardown = self.tear_down  # type: ignore[method-assign]

    def give_back(self) -> None:
        """Let the item be as it was."""
        for name in ("setup", "runtest", "teardown"):
            self.item.__dict__.pop(name, None)

    def set_up(self) -> None:
        """Be the item's setup: by now the collectors are set up. In the fork, go on with the item's
        own.
        """
        self.close()  # of an earlier try
        self.finding = None
        compat.set_up_higher(self.item)
        with refusing(self.item.config):
            self.container = container = Container(self.item.stash[SETTINGS])
            container.handle.label = self.item.nodeid
            if container.settings.image != "host":
                container.handle.directories = python_home.directories(self.item.config)
            container.start()
            self._prepare_next()
        self.item.ihook.pytest_sandbox_started(item=self.item, container=container)
        checker = messages.Checker(self.item)
        wire, streams, timer = Wire(), Streams(self.item.config), Timer(self.item)
        coverage_data.before_fork()
        timer.stop()
        ready = test_process.Fork(self.item, wire, streams, timer, self._relay)
        started = time.time()
        with ExitStack() as recording:
            recording.enter_context(compat.recorded_warnings(self.item))
            child = self._forked(container, wire, streams, timer)
            if child is None:
                self.give_back()
                self.item.stash[FORKED] = True
                self.fork = ready
                ready.begin(recording.pop_all())
                self.item.setup()
                return
        self._child = child
        streams.outputs.in_parent()
        receiver = wire.in_parent(
            child, checker, streams.outputs, may_debug=_may_debug(self.item.config)
        )
        try:
            outcome = self._wait(receiver, child, timer)
        finally:
            timer.go_on()
        self.finding = results.Finding(
            self.item, container, receiver, outcome, (started, time.time()), streams.printed()
        )
        streams.close()
        wire.close()
        try:
            self._hear(receiver)
        except Exception:
            self.finding = None  # what somebody's hook raised is what the setup phase came to
            raise

    def _forked(
        self, container: Container, wire: Wire, streams: Streams, timer: Timer
    ) -> Child | None:
        """Fork, and leave nothing open where that is refused."""
        try:
            with refusing(self.item.config):
                return fork_into(container.handle, container.settings.user)
        except BaseException:
            wire.discard()
            streams.close()
            timer.go_on()
            raise

    def _prepare_next(self) -> None:
        """Have the next test's container made while this one's test runs, where it is another than
        this one's.

        What cannot be made is that test's own error, when its turn comes.
        """
        following = None if self.nextitem is None else self.nextitem.stash.get(SETTINGS, None)
        if (
            following is not None
            and following != self.item.stash[SETTINGS]
            and following.image == "host"
        ):
            with suppress(SandboxError, OSError):
                prepare(following)

    def _wait(self, receiver: Receiver, child: Child, timer: Timer) -> Outcome:
        limits = [
            limit for limit in (child.handle.settings.timeout, timer.most) if limit is not None
        ]
        limit = min(limits, default=None)
        if receiver.receive(limit):
            if receiver.invalid:
                process.kill(child.pidfd, signal.SIGKILL)
            return Exited(0) if receiver.is_done else child.wait()
        if not receiver.interrupted:
            receiver.ask_for_stack()
        overrun = child.wait(0)
        return replace(overrun, limit=limit or 0) if isinstance(overrun, TimedOut) else overrun

    def _hear(self, receiver: Receiver) -> None:
        """Do what the fork's news ask for."""
        assert self.finding is not None
        session_state.apply(self.item, receiver)
        benchmarks.merge(self.item, receiver)
        coverage_data.merge(receiver)
        self.item.ihook.pytest_sandbox_outcome(
            item=self.item, outcome=self.finding.outcome, stats=self.finding.stats
        )
        self.finding.conclude()
        if receiver.interrupted:
            raise KeyboardInterrupt
        self._end_session("setup")

    def _end_session(self, when: str) -> None:
        if (
            self.finding is not None
            and self.finding.exit is not None
            and self.finding.exit[0] == when
        ):
            _when, reason, status = self.finding.exit
            pytest.exit(reason, status)

    def run_test(self) -> None:
        """Be the item's body: it has run, so only what it logged is left to do."""
        assert self.finding is not None
        for report in self.finding.logged:
            self.item.ihook.pytest_runtest_logreport(report=report)
        self._end_session("call")

    def tear_down(self) -> None:
        """Be the item's teardown: discard the container. In the fork, do the item's own."""
        if self.fork is not None:
            self._teardown()
            return
        if self.container is not None and self.container.status != "stopped":
            try:
                self.item.ihook.pytest_sandbox_discard(item=self.item, container=self.container)
            finally:
                self.close()
        self._end_session("teardown")

    def close(self) -> None:
        """Close the container, whatever happened; it cannot end before somebody has waited for the
        fork.
        """
        if self._child is not None:
            self._child.wait(_PATIENCE)
            self._child = None
        if self.container is not None:
            self.container.close()


class _Frame:
    """Around each test: the outermost wrappers."""

    def __init__(self, relay: test_process.Relay) -> None:
        self._relay = relay

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """Put a test inside, if that is where it belongs."""
        if not item.stash.get(INSIDE, False):
            return (yield)
        flush_terminal()
        forks.gather()  # here it is no test's time
        visit = item.stash[_VISIT] = _Visit(item, nextitem, self._relay)
        visit.take_over()
        try:
            result = yield
        except BaseException as error:
            if visit.fork is not None:
                visit.fork.end(error)
            raise
        finally:
            if (
                visit.fork is not None
            ):  # whatever this is, it may not go on into the parent's session
                os._exit(1)
            visit.give_back()
            visit.close()
            del item.stash[_VISIT]
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """In the fork, take the report; in the parent, let nobody's makereport change what the
        fork's has made of it.
        """
        visit = item.stash.get(_VISIT, None)
        if visit is not None and visit.fork is not None:
            return visit.fork.made(call, (yield))
        answer = _answer(visit, call)
        if answer is None:
            return (yield)
        call.excinfo = answer.exception()
        try:
            yield
        except Exception as error:
            if call.excinfo is None:
                raise
            answer.spoil(
                crash_report.refused(f"a hook fails at its exception ({type(error).__name__})")
            )
        call.excinfo = None  # a debugger has looked at it inside
        return answer.report


class _Answers:
    """The innermost implementation: what other plugins' wrappers see."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> pytest.TestReport | None:
        """Return a copy of the fork's report of this phase."""
        answer = _answer(item.stash.get(_VISIT, None), call)
        return None if answer is None else answer.copy()


def _may_debug(config: pytest.Config) -> bool:
    """Tell whether a debugger may stop the clock: it was asked for, or a person is at a
    terminal.
    """
    if config.getoption("usepdb", default=False) or config.getoption("trace", default=False):
        return True
    return compat.is_at_terminal(config)


def _answer(visit: _Visit | None, call: pytest.CallInfo[Any]) -> results.Answer | None:
    """Return the fork's answer; the parent's own teardown has a word of its own where it failed."""
    if visit is None or visit.fork is not None or visit.finding is None:
        return None
    answer = visit.finding.answers.get(call.when)
    if (
        answer is not None
        and call.when == "teardown"
        and call.excinfo is not None
        and not answer.is_shown(call)
    ):
        return None
    return answer
