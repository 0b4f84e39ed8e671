"""The lines at the end of a session that name the packages which many tests have imported, each in
its own process, so that they were imported many times.

Without containers, the first of these tests imports the package for all of them. An xdist worker
sends its figures to the controller, which prints the sum.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from pytest_sandbox.plugin.registration import registered
from pytest_sandbox.printable import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

    from pytest_sandbox.plugin.report_channel import Receiver

__all__ = ["add_figures_of_worker", "record"]

_NAME = "sandbox-repeated-imports"
_WORKER_KEY = "sandbox_repeated_imports"
_MAX_SHOWN = 3
#: A package is named if so many tests have imported so many modules of it altogether. A module
#: takes about a millisecond (``python -X importtime``), so this is a second.
_LEAST_TESTS, _LEAST_MODULES = 3, 1000


class _RepeatedImports:
    """A plugin that counts imports and prints the lines."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.tests: Counter[str] = Counter()
        self.modules: Counter[str] = Counter()

    def add(self, tests: Mapping[str, int], modules: Mapping[str, int]) -> None:
        """Add figures by the names of packages."""
        self.tests.update(tests)
        self.modules.update(modules)

    def pytest_sessionfinish(self) -> None:
        """Send the figures of an xdist worker."""
        output: Any = getattr(self._config, "workeroutput", None)
        if output is not None:
            output[_WORKER_KEY] = [dict(self.tests), dict(self.modules)]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the lines."""
        shown = [
            (name, count)
            for name, count in self.modules.most_common()
            if count >= _LEAST_MODULES and self.tests[name] >= _LEAST_TESTS
        ][:_MAX_SHOWN]
        if not shown:
            return
        terminalreporter.section("repeated imports")
        for name, count in shown:
            terminalreporter.line(
                f"{self.tests[name]} tests imported {printable(name)}, each in its own process: "
                f"{count:,} modules altogether"
            )
        terminalreporter.line(
            f'"import {printable(shown[0][0])}" in conftest.py imports it once, before the tests.'
        )


def _of(config: pytest.Config) -> _RepeatedImports:
    return registered(config, _RepeatedImports, _NAME)


def record(config: pytest.Config, receiver: Receiver) -> None:
    """Count what a test process has imported (imported_modules.py)."""
    for _names, packages in receiver.of_kind("imported"):
        if packages:
            _of(config).add(dict.fromkeys(packages, 1), packages)


def add_figures_of_worker(config: pytest.Config, output: dict[str, Any]) -> None:
    """Add the figures of an xdist worker in the controller."""
    tests, modules = output.get(_WORKER_KEY, ({}, {}))
    if tests:
        _of(config).add(tests, modules)
