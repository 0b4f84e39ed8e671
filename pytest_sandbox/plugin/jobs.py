"""``--sandbox-jobs``: tests that run before their turn.

pytest goes through the tests one after the other. Between two tests, and while it waits for the
test whose turn it is, the parent forks later tests whose fixtures of higher scopes are set up. When
a test's turn comes, its phases are replayed, as with one job: so reports, ``-x`` and all that
depends on the order look the same.

A fork happens only between two tests, where no hook wrapper of one test is active in another. The
test process then runs the whole protocol of its test, as pytest does in a session with one test.
"""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, NoReturn

from pytest_sandbox.linux import memory
from pytest_sandbox.plugin import (
    compat,
    compat_fixtures,
    outside_services,
    scopes,
    session_state,
)
from pytest_sandbox.plugin.report_channel import wait_for_any
from pytest_sandbox.plugin.sandboxed_test import TEST, SandboxedTest
from pytest_sandbox.plugin.stash import INSIDE, SETTINGS
from pytest_sandbox.plugin.test_process import exit_process
from pytest_sandbox.plugin.torn_down import TornDown

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from pytest_sandbox.plugin.hook_forwarder import HookForwarder
    from pytest_sandbox.plugin.interrupted_tests import InterruptedTests
    from pytest_sandbox.plugin.originals import Originals
    from pytest_sandbox.plugin.report_channel import Receiver
    from pytest_sandbox.plugin.running import Running
    from pytest_sandbox.plugin.slow_tests import SlowTests
    from pytest_sandbox.plugin.status_line import StatusLine

__all__ = ["Scheduler"]

#: Tests ahead of their turn at most, for each job.
_WINDOW = 10
#: Bytes of reports that wait for their turn.
_MAX_BYTES = 64 << 20
#: Descriptors that a test has open while it runs or waits, and those that the session needs.
_DESCRIPTORS, _RESERVED_DESCRIPTORS = 16, 256
#: Bytes that must be free for a test without a memory limit.
_LEAST_FREE = 64 << 20


class Scheduler:
    """The tests of a session that run, or have ended and wait for their turn."""

    def __init__(
        self,
        forwarder: HookForwarder,
        originals: Originals,
        slow: SlowTests,
        status_line: StatusLine,
        interrupted: InterruptedTests,
        jobs: int,
    ) -> None:
        self._forwarder = forwarder
        self._slow = slow
        self._status_line = status_line
        self._interrupted = interrupted
        self._originals = originals
        self._jobs = jobs
        self._early: dict[pytest.Item, SandboxedTest] = {}
        #: The process that tests share, of the test whose turn it is or was.
        self.current: Running | None = None
        #: Tests that could not start early: they start, and fail, at their turn.
        self._refused: set[pytest.Item] = set()

    def begin_turn(self, item: pytest.Item, nextitem: pytest.Item | None) -> SandboxedTest:
        """Return the run of the item whose turn it is; with several jobs, one that could start
        early has ended.

        Called between two tests.
        """
        if self._jobs > 1:
            try:
                self._run_early(item, nextitem)
            finally:
                self._status_line.erase()
        test = self._early.pop(item, None)
        if test is None:
            test = self._new_test(item)
        elif test.running is not self.current:
            self.end_current()
            self.current = test.running if scopes.is_shared(item) else None
        test.set_turn(nextitem, self)
        return test

    def begin_turn_outside(self, item: pytest.Item) -> None:
        """Wait for the tests that run if an item that stays outside has ``alone=True``."""
        if _is_alone(item):
            self._await_others()

    def wait(self, test: SandboxedTest) -> None:
        """Wait until the end of a test was noted.

        Ctrl-C is passed on to its process; a second one ends it.
        """
        if self._jobs == 1 and test.receiver is not None:
            later = [] if test.nextitem is None else [test.nextitem]
            outside_services.begin_ahead(test.item.config, later, every=False)
        try:
            while test.receiver is not None:
                self._advance(test)
        finally:
            self._status_line.erase()

    def note_interrupt(self, *others: SandboxedTest) -> None:
        """Note which tests run when the session is interrupted."""
        self._interrupted.note(dict.fromkeys([*self._early.values(), *others]))

    def discard(self) -> None:
        """Close the tests whose turn did not come, and end the scope of the last one."""
        while self._early:
            item, test = self._early.popitem()
            del item.stash[TEST]
            test.drop()
        self.end_current()

    # -- scopes

    def end_current(self) -> None:
        """End the scope of the last test if it has not ended; warn of what has failed."""
        running, self.current = self.current, None
        if running is None:
            return
        with self._originals:
            try:
                problem = running.tear_down_to(None, self._originals).problem
            finally:
                if not self.has_tests_of(running):
                    running.close()
        if problem:
            session_state.warn(running.item, problem)

    def tear_down_scope(self, test: SandboxedTest, nextitem: pytest.Item | None) -> TornDown:
        """After a test, have its process end if the next one does not run there.

        A test that the parent has skipped has none. What is kept for it, in the process of the
        one before it, is torn down as in its teardown phase.
        """
        running = test.running or self.current
        if running is None or not (
            running is test.running or scopes.share(running.item, test.item)
        ):
            return TornDown()
        goes_on = nextitem is not None and self.goes_on(running, nextitem)
        if goes_on and (running is test.running or not scopes.ends_collector(test.item, nextitem)):
            return TornDown()
        with self._originals:
            return running.tear_down_to(nextitem if goes_on else None, self._originals)

    def forget(self, running: Running) -> None:
        """Note that a process is closed."""
        if self.current is running:
            self.current = None

    def has_tests_of(self, running: Running) -> bool:
        """Tell whether a test whose turn has not come runs, or has run, in a process."""
        return any(test.running is running for test in self._early.values())

    def goes_on(self, running: Running, nextitem: pytest.Item) -> bool:
        """Tell whether the next test runs, has run or may run in a process."""
        following = self._early.get(nextitem)
        if following is not None:
            return following.running is running
        return running.may_run(nextitem)

    def begin_following(self, test: SandboxedTest, nextitem: pytest.Item | None) -> None:
        """Have the process of a test run the next one before its turn, if that needs nothing from
        the parent.
        """
        running = test.running
        if (
            running is not None
            and nextitem is not None
            and nextitem is not test.item
            and nextitem not in self._early
            and nextitem not in self._refused
            and test.may_go_on
            and running.may_run(nextitem)
            and not (nextitem.session.shouldstop or nextitem.session.shouldfail)
        ):
            self._begin_in(running, nextitem)

    def _begin_in(self, running: Running, item: pytest.Item) -> None:
        """Have a waiting process run a test, unless that depends on what the parent does at the
        test's turn.
        """
        if (
            scopes.may_be_skipped(item)
            or (self._jobs > 1 and not self._has_room_for(item))
            or scopes.lacks_fixture(item)
        ):
            return
        test = self._new_test(item)
        try:
            test.begin_in(running)
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - it is raised again at the test's turn
            del item.stash[TEST]
            self._refused.add(item)
            return
        self._early[item] = test

    def _new_test(self, item: pytest.Item) -> SandboxedTest:
        test = item.stash[TEST] = SandboxedTest(item, self._forwarder, self._originals)
        return test

    # -- tests that start early

    def _run_early(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        """Start tests, also while waiting for the end of the item that is next."""
        index, most = scopes.index_of(item), _WINDOW * self._jobs
        following = [item, *compat.upcoming(item, index, nextitem, most - 1)]
        if _is_alone(item):
            self._await_others()
            return
        while True:
            self._start_some(following)
            test = self._early.get(item)
            if test is None or test.receiver is None:
                return
            self._advance(test)

    def _start_some(self, following: list[pytest.Item]) -> None:
        """Start the next tests that can start, as many as there may be."""
        if len(self._running()) >= self._jobs or self._interrupted.is_noted:
            return  # before looking at the fixtures of many tests
        self._begin_services(following)
        for item in self._startable(following):
            if not self._has_room_for(item):
                break
            self._start(item)
        self._begin_services(following)

    def _begin_services(self, following: list[pytest.Item]) -> None:
        """Begin the services of the next tests, so that their starts overlap: of as many as run at
        a time.
        """
        later = [
            item for item in following if item not in self._early and not scopes.is_shared(item)
        ]
        if later:
            outside_services.begin_ahead(later[0].config, later[: self._jobs], every=True)

    def _startable(self, following: list[pytest.Item]) -> Iterator[pytest.Item]:
        before: pytest.Item | None = None
        # The nodes of all items up to the one that is looked at: pytest tears down the fixtures of
        # any other one between two items.
        lasting = set(following[0].listchain())
        is_complete = True  # nothing is set up before the turn of the item that is looked at
        for item in following:
            before, last = item, before
            lasting.intersection_update(item.listchain())
            if _is_alone(item):
                return
            if item in self._early:
                continue
            may_start = item not in self._refused and item.stash.get(INSIDE, False)
            if may_start and self._is_for_process_of(last, item):
                is_complete &= item in self._early
                continue
            if not scopes.is_fresh(item):
                inside = scopes.nodes_inside(item)
                fixtures = compat_fixtures.HigherFixtures(item, scopes.scope_of(item), inside)
                if fixtures.are_of_other_parameters:
                    return  # what later items use is torn down before
                is_ready = fixtures.last_on(lasting)
                may_start = may_start and is_ready and self._are_set_up_for_rest(item)
                may_start = may_start and fixtures.are_all_named(lasting, is_complete=is_complete)
                is_complete &= is_ready
            if may_start:
                yield item

    def _is_for_process_of(self, last: pytest.Item | None, item: pytest.Item) -> bool:
        """Tell whether an item runs where the one before it runs, or will; begin it if it can."""
        if last is None:
            if self.current is None or not self.current.may_run(item):
                return False
            self._begin_in(self.current, item)
            return True
        if not scopes.share(last, item):
            return False
        before = self._early.get(last)
        if before is None or before.running is None:
            return True  # that starts at its turn
        if before.receiver is None and before.running.is_over:
            return False  # it has crashed
        self.begin_following(before, item)
        return True

    @staticmethod
    def _are_set_up_for_rest(item: pytest.Item) -> bool:
        """Tell whether later tests of the item's scope need nothing more from the parent."""
        following = scopes.following(item)
        while following is not None:
            if not scopes.may_be_skipped(following) and scopes.lacks_fixture(following):
                return False
            following = scopes.following(following)
        return True

    def _running(self) -> list[SandboxedTest]:
        return [test for test in self._early.values() if test.receiver is not None]

    def _has_room_for(self, item: pytest.Item) -> bool:
        running = self._running()
        if len(running) >= self._jobs or len(self._early) >= _most_waiting():
            return False
        if sum(test.report_bytes for test in self._early.values()) > _MAX_BYTES:
            return False
        if not running:
            return True
        wanted = [item.stash[SETTINGS].memory, *(t.item.stash[SETTINGS].memory for t in running)]
        limited = sum(one for one in wanted if one is not None)
        return limited <= memory.total() and memory.available() >= _LEAST_FREE

    def _start(self, item: pytest.Item) -> None:
        test = self._new_test(item)
        is_parent = False
        try:
            is_parent = test.start_early()
        except KeyboardInterrupt:
            self._drop(test)
            raise
        except BaseException:  # noqa: BLE001 - it is raised again at the test's turn
            self._drop(test)
            self._refused.add(item)
            return
        if is_parent:
            self._early[item] = test
        else:
            _run_protocol(item)

    @staticmethod
    def _drop(test: SandboxedTest) -> None:
        if test.test_process is not None:
            exit_process(1)
        del test.item.stash[TEST]
        test.drop()

    def _await_others(self) -> None:
        for test in list(self._early.values()):
            self.wait(test)

    def _advance(self, test: SandboxedTest) -> None:
        """Read what the next of the running tests reports; ``test`` is the one waited for."""
        started = dict.fromkeys([*self._early.values(), test])
        running = [one for one in started if one.receiver is not None]
        receivers = [one.receiver for one in running if one.receiver is not None]
        with self._originals:
            try:
                wait_for_any(receivers, self._originals, self._time_left(receivers))
            except KeyboardInterrupt:
                self.note_interrupt(test)
                if test.receiver is not None:
                    test.receiver.interrupt()
            for one in running:
                if one.receiver is not None and one.receiver.is_over:
                    one.note_end()
                elif one.receiver is not None and self._slow.is_due(one.receiver):
                    self._status_line.erase()
                    self._slow.name(one.item, one.receiver)
            self._show(running)

    def _show(self, tests: list[SandboxedTest]) -> None:
        """Name the running tests on the status line, unless a debugger uses the terminal."""
        running = [one for one in tests if one.receiver is not None]
        if any(one.receiver is not None and one.receiver.is_debugging for one in running):
            self._status_line.erase()
        else:
            self._status_line.show([one.item.nodeid for one in running])

    def _time_left(self, receivers: list[Receiver]) -> float | None:
        """Return the seconds until there is something to write."""
        times = (self._slow.time_left(receivers), self._status_line.time_left())
        return min((one for one in times if one is not None), default=None)


def _most_waiting() -> int:
    """Return how many tests the limit on open files allows (getrlimit(2))."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (soft - _RESERVED_DESCRIPTORS) // _DESCRIPTORS)


def _is_alone(item: pytest.Item) -> bool:
    settings = item.stash.get(SETTINGS, None)
    return settings is not None and settings.alone


def _run_protocol(item: pytest.Item) -> NoReturn:
    """Run the protocol of a test that was started early, in its test process."""
    try:
        compat_fixtures.keep_collectors_of(item)
        item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
    finally:
        exit_process(1)  # protocol.py has ended the process, unless there was an error
