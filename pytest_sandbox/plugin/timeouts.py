"""Other plugins' clocks: a timer does not survive a fork, so the fork starts one of its own, where
the test's stack is.
"""

from __future__ import annotations

import faulthandler
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from _typeshed import Incomplete

__all__ = ["Remembering", "Timer"]

#: How long the parent waits past pytest-timeout's own end of a test inside, which is the better one
#: to report.
_GRACE = 1.0
_SETTINGS = pytest.StashKey[Any]()


class Timer:
    """The clocks of pytest-timeout and of ``faulthandler_timeout`` around one test."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._settings = item.stash.get(_SETTINGS, None)
        self._dump_after = _dump_after(item.config)

    @property
    def most(self) -> float | None:
        """How long the fork may take before the parent has to end it in pytest-timeout's stead."""
        return (
            None
            if self._settings is None or self._settings.disable_debugger_detection
            else self._settings.timeout + _GRACE
        )

    def stop(self) -> None:
        """Stop the parent's clocks: the fork has its own.

        The watchdog of faulthandler is a thread, for which the fork would wait for ever.
        """
        if self._dump_after > 0:
            faulthandler.cancel_dump_traceback_later()
        if self._settings is not None:
            self._item.config.hook.pytest_timeout_cancel_timer(item=self._item)

    def go_on(self) -> None:
        """Start a clock in the parent again, for what it still does."""
        if self._settings is not None:
            self._item.config.hook.pytest_timeout_set_timer(
                item=self._item, settings=self._settings
            )

    def in_fork(self) -> None:
        """Start the fork's clocks."""
        self.go_on()
        if self._dump_after > 0:
            faulthandler.dump_traceback_later(self._dump_after)


def _dump_after(config: pytest.Config) -> float:
    try:
        return float(config.getini("faulthandler_timeout") or 0)
    except (KeyError, ValueError):
        return 0


class Remembering:
    """Hears what pytest-timeout starts its clocks with."""

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Incomplete) -> None:
        """Remember the settings of a test."""
        item.stash[_SETTINGS] = settings
