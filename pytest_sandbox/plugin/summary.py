"""What a session says of its containers: the header, ``--sandbox-stats``, and how to open what was
kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pytest_sandbox.plugin.crash_report import mib
from pytest_sandbox.plugin.options import wants_sandbox
from pytest_sandbox.plugin.report_sections import PREFIX, is_ours

if TYPE_CHECKING:
    import pytest

__all__ = ["register"]

_MOST_KEPT = 10


class _Row(NamedTuple):
    """What one test cost."""

    memory: int
    cpu: float
    wall: float
    nodeid: str


def register(config: pytest.Config) -> None:
    """Have the session say what of its containers it was asked to say."""
    config.pluginmanager.register(_Summary(config), "sandbox-summary")


class _Summary:
    """Collects from the reports, wherever their tests ran: in this process or in an xdist
    worker.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._rows: dict[str, _Row] = {}
        self._kept: dict[str, str] = {}

    def pytest_report_header(self) -> str | None:
        """Say what isolation the tests get, where all of them are to be inside."""
        if not wants_sandbox(self._config):
            return None
        from pytest_sandbox import host

        return f"sandbox: each test in a container of its own ({host.headline()})"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the figures of a test's report."""
        ours = [one for one in report.user_properties if is_ours(one)]
        found = {name.removeprefix(PREFIX): value for name, value in ours}
        if found and report.when in {"setup", "call"}:
            figures = (found.get("memory_peak") or 0, found.get("cpu_seconds") or 0.0)
            self._rows[report.nodeid] = _Row(*figures, report.duration, report.nodeid)  # type: ignore[arg-type]
        if "kept" in found:
            self._kept[str(found["kept"])] = report.nodeid

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table, and the commands."""
        most = self._config.getoption("sandbox_stats")
        if most and self._rows:
            self._table(terminalreporter, most)
        if self._kept:
            terminalreporter.section("kept containers")
            for name, nodeid in list(self._kept.items())[:_MOST_KEPT]:
                terminalreporter.line(f"pytest-sandbox shell {name}  # {nodeid}")
            if len(self._kept) > _MOST_KEPT:
                terminalreporter.line(f"... and {len(self._kept) - _MOST_KEPT} more")

    def _table(self, terminal: pytest.TerminalReporter, most: int) -> None:
        """Print the tests that cost most memory, and among equals most CPU time."""
        terminal.section(f"{min(most, len(self._rows))} most expensive tests in containers")
        terminal.line(f"{'memory peak':>12} {'CPU':>10} {'wall':>10}  test")
        for row in sorted(self._rows.values(), reverse=True)[:most]:
            terminal.line(f"{mib(row.memory):>12} {row.cpu:8.3f} s {row.wall:8.3f} s  {row.nodeid}")
