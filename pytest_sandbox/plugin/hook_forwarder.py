"""What other plugins log or announce in a test process, sent to its parent."""

from __future__ import annotations

import fcntl
import os
import sysconfig
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.container import values
from pytest_sandbox.plugin.options import SCOPES
from pytest_sandbox.plugin.report_attributes import encode_attributes
from pytest_sandbox.plugin.report_schema import KNOWN

if TYPE_CHECKING:
    import warnings
    from collections.abc import Generator

    from pytest_sandbox.plugin.report_channel import ReportChannel

__all__ = ["HookForwarder"]

#: The second one is about reports of subtests only.
_SERIALIZERS = {"_pytest", "pytest_subtests"}


class HookForwarder:
    """A plugin that sends to the parent what other plugins log or announce in a test process.

    It is registered in the parent, because registering in each test process would take longer.
    There, ``channel`` is None, and nothing is sent.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.channel: ReportChannel | None = None
        self.scope = "function"
        #: The last report, as the wrappers of other plugins have got it.
        self.report: pytest.TestReport | None = None
        #: Whether no other plugin has a say in how a report is serialised.
        hooks = (
            config.hook.pytest_report_to_serializable,
            config.hook.pytest_report_from_serializable,
        )
        self.is_serialized_by_pytest = all(
            getattr(one.function, "__module__", "").partition(".")[0] in _SERIALIZERS
            for hook in hooks
            for one in hook.get_hookimpls()
        )
        self._terminal_lock = os.memfd_create("debugger", os.MFD_CLOEXEC)
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
        """Suspend the timeout while a debugger waits for input; wait for the end of another test's
        debugger, which uses the same terminal.
        """
        self._send("debugger", data=True, wake=True)
        if self.channel is not None:
            # Of a process, not of the open file, which all test processes share (fcntl(2)).
            fcntl.lockf(self._terminal_lock, fcntl.LOCK_EX)

    def pytest_leave_pdb(self) -> None:
        """Resume the timeout."""
        if self.channel is not None:
            fcntl.lockf(self._terminal_lock, fcntl.LOCK_UN)
        self._send("debugger", data=False, wake=True)

    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        """Report a fixture of a higher scope that is set up here, for this test alone: no fixture
        or mark named it, so the parent could not set it up.
        """
        if self.channel is None or SCOPES.index(fixturedef.scope) <= SCOPES.index(self.scope):
            return
        if _is_of_the_suite(fixturedef.func):
            self._send("late_fixture", [fixturedef.argname, fixturedef.scope])


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
