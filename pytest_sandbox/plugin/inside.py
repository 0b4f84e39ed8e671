"""A test inside: higher-scoped fixtures in the parent; function scope, body and teardown in one fork that joins a container.

The fork happens within the parent's own setup phase, which then waits: so the fork goes on with every plugin's setup wrappers around it, and the
two never use what they share (the capture's files) at the same time.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_sandbox.plugin import compat, coverage_data, verdict
from pytest_sandbox.plugin.rule import INSIDE, SETTINGS
from pytest_sandbox.plugin.wire import Sender, receive_all

if TYPE_CHECKING:
    from pytest_sandbox.container import Container

__all__ = ["pytest_runtest_protocol"]


class _ParentDone(BaseException):
    pass


class _Split:
    """One test's way: the parent until the fork, then each side."""

    def __init__(self, item: pytest.Item, container: Container) -> None:
        self.item = item
        self.container = container
        self.received: list[dict[str, Any]] = []
        self.sender: Sender | None = None
        self.finding: verdict.Finding | None = None

    def set_up(self) -> None:
        """Take the place of ``item.setup``: the collectors are set up by now."""
        from pytest_sandbox.channel import Channel

        compat.set_up_higher(self.item)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        ours, theirs = Channel.pair()
        started = time.time()
        child = self.container.fork()
        if child is None:
            ours.close()
            self.sender = Sender(self.item.config, theirs)
            compat.forget_finalizers(self.item)
            del self.item.setup
            self.item.setup()
            return
        theirs.close()
        timeout = self.container.settings.timeout
        self.received, in_time = receive_all(ours, child.pidfd, timeout)
        ours.close()
        outcome = child.wait(None if in_time else 0)
        self.finding = verdict.Finding(outcome, self.container, self.received, timeout, started, time.time())
        raise _ParentDone

    def run(self, nextitem: pytest.Item | None) -> None:
        hook = self.item.ihook
        self.item.setup = self.set_up  # type: ignore[method-assign]
        call = None
        try:
            reraise = (pytest.exit.Exception, KeyboardInterrupt, _ParentDone)
            call = pytest.CallInfo.from_call(lambda: hook.pytest_runtest_setup(item=self.item), when="setup", reraise=reraise)
        except _ParentDone:
            pass
        except (pytest.exit.Exception, KeyboardInterrupt) as error:
            if self.sender is None:
                raise
            self.sender.end_session(error)
        finally:
            self.item.__dict__.pop("setup", None)
        if self.sender is not None:
            _in_the_fork(self.item, call, self.sender)
        if call is not None:  # the parent's own part failed or was skipped
            hook.pytest_runtest_logreport(report=hook.pytest_runtest_makereport(item=self.item, call=call))
        else:
            assert self.finding is not None
            self.finding.replay(self.item)
        self.tear_down(nextitem)
        if self.finding is not None:
            self.finding.end_session()

    def tear_down(self, nextitem: pytest.Item | None) -> None:
        """Tear down in the parent what the next test does not need; it is only news when it fails."""
        report = compat.run_phase(self.item, "teardown", nextitem=nextitem)
        reported = any(one["kind"] == "report" and one["data"].get("when") == "teardown" for one in self.received)
        if report.failed or not reported:
            self.item.ihook.pytest_runtest_logreport(report=report)


def _in_the_fork(item: pytest.Item, call: pytest.CallInfo[None] | None, sender: Sender) -> NoReturn:
    """Report the setup, run body and teardown, and end without a trace of the parent's session."""
    status = 1
    try:
        assert call is not None
        report = item.ihook.pytest_runtest_makereport(item=item, call=call)
        sender.report(report)
        if report.passed and not item.config.getoption("setuponly", default=False):
            sender.report(compat.run_phase(item, "call"))
        sender.report(compat.run_phase(item, "teardown", nextitem=None))
        coverage_data.send(sender)
        sender.done()
        status = 0
    except (pytest.exit.Exception, KeyboardInterrupt) as error:
        sender.end_session(error)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a test inside, if that is where it belongs."""
    if not item.stash.get(INSIDE, False):
        return None
    from pytest_sandbox.container import Container

    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    compat.begin_request(item)
    container = Container(item.stash[SETTINGS])
    try:
        try:
            container.start()
        except Exception as error:  # noqa: BLE001 - a test whose container cannot be made is a test that failed, and says why
            verdict.report_unstarted(item, error)
        else:
            item.ihook.pytest_sandbox_started(item=item, container=container)
            _Split(item, container).run(nextitem)
            item.ihook.pytest_sandbox_discard(item=item, container=container)
    finally:
        container.close()
        compat.end_request(item)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
