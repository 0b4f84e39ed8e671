"""A container and the test process in it, as the parent sees them, for one test or for a scope.

sandboxed_test.py creates a :class:`Running` for a test that cannot run where the one before it did,
and takes an :class:`~pytest_sandbox.plugin.results.Ended` for each test from it. A process that
tests share waits after each test. If the test has passed, the parent names the next one at once,
and replays the reports while that runs. After a failure it waits until the next test's turn: a
plugin may repeat the test, or end the session.
"""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from pytest_sandbox.container.container import Container
from pytest_sandbox.container.lifecycle import prepare
from pytest_sandbox.errors import SandboxError
from pytest_sandbox.linux import process
from pytest_sandbox.outcome import Exited, Outcome, Signaled, Stats, TimedOut
from pytest_sandbox.plugin import compat, network_report, outside_services, python_home, scopes
from pytest_sandbox.plugin.message_checker import MessageChecker
from pytest_sandbox.plugin.outside_services import OutsideServices
from pytest_sandbox.plugin.report_channel import STACK_SIGNAL, Receiver, wait_for_any
from pytest_sandbox.plugin.results import Ended
from pytest_sandbox.plugin.stash import SETTINGS
from pytest_sandbox.plugin.torn_down import TornDown, torn_down
from pytest_sandbox.plugin.unsupported import as_test_result

if TYPE_CHECKING:
    import pytest

    from pytest_sandbox.container.fork import Child
    from pytest_sandbox.plugin.captured_output import CapturedOutput
    from pytest_sandbox.plugin.originals import Originals
    from pytest_sandbox.plugin.report_channel import ReportChannel

__all__ = ["Running", "abandon_all"]

#: Seconds that a test process may take to end after its last message.
_EXIT_TIMEOUT = 2
#: Seconds for the fixtures of a scope to be torn down when the scope ends before its last test, and
#: for a test that the parent has skipped to be skipped in its process too.
_END_TIMEOUT = 10.0

#: The clock of the times of files (clock_gettime(2), inode(7)), which Python has no name for.
_CLOCK_REALTIME_COARSE = 5


class Running:
    """A container and its test process.

    - ``item``: the test that runs there, or ran last.
    - ``receiver``: what that reports; None if it has ended.
    - ``is_waiting``: whether the process waits for the next test.
    """

    def __init__(self, item: pytest.Item) -> None:
        self.item = item
        self.container = Container(item.stash[SETTINGS])
        self.receiver: Receiver | None = None
        self.is_waiting = False
        #: Whether the fixtures of the last test were set up, and it has passed.
        self.has_set_up = self.has_passed = False
        self._earlier = 0
        self._started, self._since = 0.0, 0
        self._child: Child | None = None
        self._before: Stats | None = None
        self._figures: Stats | None = None
        self._is_open = False
        self._services = OutsideServices()

    def start_container(self, nextitem: pytest.Item | None) -> None:
        """Start the container; raise what makes the test fail or skip if that fails.

        ``nextitem`` is the test whose container the launcher can create meanwhile.
        """
        with as_test_result(self.item.config):
            settings = self._services.settings_for(self.item, self.container.settings)
            if settings is not self.container.settings:
                self.container = Container(settings)
            self._services.start_for(self.item)
            container = self.container
            container.handle.label = self.item.nodeid
            if container.settings.image != "host":
                container.handle.directories = python_home.directories(self.item.config)
            container.start()
            self._prepare(nextitem)

    def _prepare(self, nextitem: pytest.Item | None) -> None:
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

    def forked(
        self,
        child: Child,
        channel: ReportChannel,
        output: CapturedOutput,
        checker: MessageChecker,
        started: float,
    ) -> Receiver:
        """Take the child after the fork, in the parent. ``started`` is the time of the fork."""
        self._child, self._channel, self._output = child, channel, output
        self._is_open, self._started = True, started
        self._may_debug = _may_debug(self.item.config)
        _open_runs.add(self)
        output.inherited.in_parent()
        channel.in_parent()
        return self._receive(checker)

    def _receive(self, checker: MessageChecker) -> Receiver:
        assert self._child is not None
        inherited = self._output.inherited
        made = Receiver(self._channel, self._child, checker, inherited, may_debug=self._may_debug)
        timeout = self.item.stash[SETTINGS].timeout
        if timeout is not None:
            made.limit(timeout)
        self.receiver = made
        return made

    # -- tests

    def may_run(self, item: pytest.Item) -> bool:
        """Tell whether the process can run a test next: another one, or the last one again.

        A thread of an earlier test may have ended it meanwhile; tear_down_to() reports that.
        """
        if not self.is_waiting or self._child is None or process.ended(self._child.pidfd, 0):
            return False
        if self.item is item:
            # pytest keeps the exception of a fixture: a repeated test needs it created again.
            return self.has_set_up
        return scopes.share(self.item, item)

    @property
    def is_over(self) -> bool:
        """Whether no test runs there, or will."""
        return self.receiver is None and not self.is_waiting

    def begin(self, item: pytest.Item) -> None:
        """Have the waiting process run a test. Raises what makes the test fail before it begins."""
        assert self._child is not None
        with as_test_result(item.config):
            self._services.start_for(item)
        self._before = self._figures
        self.container.handle.cgroup.files.keep()  # many tests may follow
        if self._before is not None:
            self._child.set_oom_kills(self._before.oom_kills or 0)
        self._earlier += 1
        self.item, self.is_waiting = item, False
        self._started = time.time()
        self._since = time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)
        self._receive(MessageChecker(item))
        self._channel.free_read()
        assert self._channel.words is not None
        if not self._channel.words.send(scopes.index_of(item), outside_services.describe(item)):
            self._child.kill()  # it does not read

    def expect_skip(self) -> None:
        """Give a test that the parent has skipped little time: its process skips it too."""
        if self.receiver is not None:
            self.receiver.limit(_END_TIMEOUT)

    def note_end(self) -> Ended:
        """Find out how the test has ended, once its receiver is over.

        Closes the descriptors if no test follows: many tests may wait for their turn.
        """
        receiver, self.receiver = self.receiver, None
        assert receiver is not None
        outcome = self._find_outcome(receiver)
        self.is_waiting = receiver.is_waiting and scopes.is_shared(self.item)
        if self.is_waiting:
            self._output.drain()
        self.has_set_up, self.has_passed = receiver.passed_phases
        self._figures = figures = self._read_figures()
        ended = Ended(
            receiver,
            outcome,
            (self._started, time.time()),
            self._since,
            self._output.read(),
            figures if self._before is None else figures.since(self._before),
            self._describe(outcome),
            network_report.take_blocked(self.container),
        )
        if not self.is_waiting:
            self._close_descriptors()
        return ended

    def _read_figures(self) -> Stats:
        """Return what the container uses; unknown figures if it has ended with its launcher."""
        try:
            return self.container.handle.figures()
        except (SandboxError, OSError):  # its cgroup may be gone
            nothing: dict[str, None] = dict.fromkeys(one.name for one in fields(Stats))
            return replace(Stats(**nothing), memory_limit=self.container.settings.memory)

    def _find_outcome(self, receiver: Receiver) -> Outcome:
        child = self._child
        assert child is not None
        if not receiver.timed_out:
            if receiver.invalid:
                process.kill(child.pidfd, signal.SIGKILL)
            # After its last message the test is over: close() waits for the process.
            return Exited(0) if receiver.is_done else child.wait()
        if not receiver.interrupted:
            receiver.request_stack()
        outcome = child.wait(0)
        if isinstance(outcome, TimedOut):
            return replace(outcome, limit=receiver.limit_seconds)
        if outcome == Signaled(STACK_SIGNAL) and not receiver.interrupted:
            return TimedOut(receiver.limit_seconds)  # the test has removed the signal's handler
        if isinstance(outcome, Exited) and not receiver.interrupted:
            # The signal for its stack has interrupted a system call, and the test went on.
            return TimedOut(receiver.limit_seconds)
        return outcome

    def _describe(self, outcome: Outcome) -> str:
        """Return what the report of a failure says about the container and about the other tests of
        the scope.
        """
        lines = []
        if isinstance(outcome, Signaled) and self.container.status == "stopped":
            lines.append("The container has ended: its init or its launcher was killed.")
        if scopes.is_shared(self.item):
            scope = scopes.scope_of(self.item)
            lines.append(f"scope={scope}: {self._earlier} tests ran in this container before.")
            if not self.is_waiting and scopes.following(self.item) is not None:
                lines.append(f"Later tests of the {scope} run in a new container.")
        return "\n".join(lines)

    # -- the end

    def tear_down_to(self, nextitem: pytest.Item | None, originals: Originals) -> TornDown:
        """Have the waiting process tear down what ``nextitem`` does not need, and end if it is
        None.
        """
        if not self.is_waiting:
            return TornDown()
        self.is_waiting = False
        assert self._child is not None
        checker = MessageChecker(self.item, ending=True)
        receiver = Receiver(
            self._channel, self._child, checker, self._output.inherited, may_debug=False
        )
        receiver.limit(_END_TIMEOUT)
        assert self._channel.words is not None
        self._channel.words.send(None if nextitem is None else ~scopes.index_of(nextitem))
        while not receiver.is_over:
            wait_for_any([receiver], originals, None)
        self.is_waiting = nextitem is not None and receiver.is_waiting
        if not self.is_waiting:
            self._close_descriptors()
        return torn_down(self.item, receiver)

    def close(self) -> None:
        """Close the container, and end its process if it runs.

        The kernel ends a PID namespace only when the test process, a child of this one, has been
        waited for (pid_namespaces(7)).
        """
        child, self._child = self._child, None
        if child is not None:
            if not self.is_over:  # the session ends before the test
                child.kill()
            self.receiver, self.is_waiting = None, False
            self._close_descriptors()
            child.wait(_EXIT_TIMEOUT)
        self.container.close()
        self._services.close()

    def _close_descriptors(self) -> None:
        if self._is_open:
            self._is_open = False
            _open_runs.discard(self)
            self._output.close()
            self._channel.close()

    def abandon(self) -> None:
        """Close the descriptors in the process of another test, which could forge reports."""
        self._is_open = False
        self._output.abandon()
        self._channel.close()


#: Those of this process that have descriptors.
_open_runs: set[Running] = set()


def abandon_all() -> None:
    """Close, in a new test process, the descriptors of all others."""
    for run in _open_runs:
        run.abandon()


def _may_debug(config: pytest.Config) -> bool:
    """Tell whether a debugger may suspend the timeout: it was requested, or the session is
    interactive. Otherwise a test could suspend its own.
    """
    if config.getoption("usepdb", default=False) or config.getoption("trace", default=False):
        return True
    return compat.is_at_terminal(config)
