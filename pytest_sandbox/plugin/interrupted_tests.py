"""Ctrl-C with ``--sandbox-jobs``: the tests that were running are named at the end of the session.

Only the test whose turn it is has a report or a traceback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from pytest_sandbox.plugin.sandboxed_test import SandboxedTest

__all__ = ["InterruptedTests"]

_MAX_SHOWN = 20


class InterruptedTests:
    """The plugin that names the tests, once it knows them."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._running: list[tuple[float, str]] = []
        self.is_noted = False

    def note(self, tests: Iterable[SandboxedTest]) -> None:
        """Note, at the first interrupt, which tests run and for how many seconds."""
        if not self.is_noted:
            self.is_noted = True
            self._running = [
                (test.receiver.age(), test.item.nodeid)
                for test in tests
                if test.receiver is not None
            ]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Generator[None, None, None]:
        """Print the tests below what pytest itself prints, those that ran longest first."""
        yield
        terminal = self._config.pluginmanager.getplugin("terminalreporter")
        if terminal is None or not self._running:
            return
        terminal.write_line("sandbox: running when the session was interrupted:")
        found = sorted(self._running, reverse=True)
        for age, nodeid in found[:_MAX_SHOWN]:
            terminal.write_line(f"  {age:8.1f} s  {nodeid}")
        if len(found) > _MAX_SHOWN:
            terminal.write_line(f"  ... and {len(found) - _MAX_SHOWN} more")
