"""The timeouts of pytest-timeout and of ``faulthandler_timeout`` for a test in a container.

Timers and threads do not survive a fork (fork(2)). So the parent stops its own, and the test
process starts new ones, where the stack of the test is. protocol.py and test_process.py call this
module.
"""

from __future__ import annotations

import faulthandler
from functools import wraps
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.plugin.report_channel import GRACE

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import Incomplete

__all__ = ["PluginTimeouts", "TimeoutObserver"]

_SETTINGS = pytest.StashKey[Any]()


class PluginTimeouts:
    """The timeouts that apply to one test."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._settings = item.stash.get(_SETTINGS, None)
        self._dump_after = _faulthandler_timeout(item.config)

    @property
    def limit(self) -> float | None:
        """Seconds after which the parent has to end the test process; None for no limit."""
        if self._settings is None or self._settings.disable_debugger_detection:
            return None
        limit: float = self._settings.timeout + GRACE
        return limit

    def stop(self) -> None:
        """Stop the parent's timers.

        faulthandler's is a thread: the child would wait for it for ever.
        """
        if self._dump_after > 0:
            faulthandler.cancel_dump_traceback_later()
        if self._settings is not None:
            self._item.config.hook.pytest_timeout_cancel_timer(item=self._item)

    def restart(self) -> None:
        """Start pytest-timeout's timer again, in the parent after the test process has ended."""
        if self._settings is not None:
            self._item.config.hook.pytest_timeout_set_timer(
                item=self._item, settings=self._settings
            )

    def in_child(self) -> None:
        """Start the timers of the test process."""
        _ignore_timer_of_parent()
        self.restart()
        if self._dump_after > 0:
            faulthandler.dump_traceback_later(self._dump_after)


def _ignore_timer_of_parent() -> None:
    """Have ``faulthandler.cancel_dump_traceback_later()`` cancel only a timer of this process.

    A conftest.py may have started one in the parent, for the whole session. Its thread does not
    exist in the fork, and CPython waits for it without releasing the GIL. pytest cancels the timer
    whenever a test fails. A timer that the test itself starts next to such a one still waits.
    """
    start, cancel = faulthandler.dump_traceback_later, faulthandler.cancel_dump_traceback_later
    started = False

    @wraps(start)
    def start_own(*arguments: Any, **named: Any) -> None:
        nonlocal started
        start(*arguments, **named)
        started = True

    @wraps(cancel)
    def cancel_own() -> None:
        if started:
            cancel()

    vars(faulthandler).update(
        dump_traceback_later=start_own, cancel_dump_traceback_later=cancel_own
    )


def _faulthandler_timeout(config: pytest.Config) -> float:
    try:
        return float(config.getini("faulthandler_timeout") or 0)
    except (KeyError, ValueError):
        return 0


class TimeoutObserver:
    """A plugin that records the settings with which pytest-timeout starts its timers.

    In a test process, ``announce`` sends a timeout to the parent.
    """

    def __init__(self, announce: Callable[[float], None]) -> None:
        self._announce = announce

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Incomplete) -> None:
        """Record the settings of a test."""
        item.stash[_SETTINGS] = settings
        if not settings.disable_debugger_detection:
            self._announce(float(settings.timeout or 0))
