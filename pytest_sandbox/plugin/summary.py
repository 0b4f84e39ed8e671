"""What a session reports about its containers: the header, the table of ``--sandbox-stats``, and
the commands that open what ``--sandbox-keep`` saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_sandbox.plugin.stash import OUTSIDE
from pytest_sandbox.plugin.user_properties import PREFIX, is_of_container
from pytest_sandbox.units import mib

if TYPE_CHECKING:
    import pytest

__all__ = ["register"]

_MAX_KEPT_SHOWN = 10


class _Row(NamedTuple):
    """What one test used, in the order of the table's columns and of importance."""

    memory: int
    cpu: float
    wall: float
    nodeid: str


#: Which tests share a container, by the scope that is set for all of them.
_SHARING = {
    "function": "each test in a container of its own",
    "class": "the tests of each class in one container",
    "module": "the tests of each module in one container",
    "package": "the tests of each package in one container",
    "session": "all tests in one container",
}


def register(config: pytest.Config, *, all_inside: bool, scope: str) -> None:
    """Register the summary.

    ``all_inside`` shows the header about isolation; the tests of a ``scope`` share a container.
    """
    summary = _Summary(config, all_inside=all_inside, scope=scope)
    config.pluginmanager.register(summary, "sandbox-summary")


class _Summary:
    """A plugin that reads the reports of all tests: those of this process, and in xdist's
    controller those of the workers.
    """

    def __init__(self, config: pytest.Config, *, all_inside: bool, scope: str) -> None:
        self._config = config
        self._all_inside = all_inside
        self._scope = scope
        self._count: int = config.getoption("sandbox_stats") or 0
        self._rows: dict[str, _Row] = {}  # only if they are printed
        self._kept: dict[str, str] = {}

    def pytest_report_header(self) -> str | None:
        """Return a line about the isolation that this host provides."""
        if not self._all_inside:
            return None
        from pytest_sandbox import host

        return f"sandbox: {_SHARING[self._scope]} ({host.headline()})"

    def pytest_report_collectionfinish(self) -> str | None:
        """Return a line about tests that stay outside although they have no mark that says so."""
        count = self._config.stash.get(OUTSIDE, 0)
        if not count:
            return None
        return (
            f"sandbox: {count} tests stay outside, since they use container_factory; "
            "@pytest.mark.container puts them inside, @pytest.mark.no_sandbox ends this line"
        )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Read the properties that user_properties.py has set."""
        own = [one for one in report.user_properties if is_of_container(one)]
        found = {name.removeprefix(PREFIX): value for name, value in own}
        if found and self._count and report.when in {"setup", "call"}:
            memory: Any = found.get("memory_peak") or 0
            cpu: Any = found.get("cpu_seconds") or 0.0
            self._rows[report.nodeid] = _Row(memory, cpu, report.duration, report.nodeid)
        if "kept" in found:
            self._kept[str(found["kept"])] = report.nodeid

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table and the commands."""
        if self._rows:
            self._print_table(terminalreporter)
        if self._kept:
            self._print_kept(terminalreporter)

    def _print_table(self, terminal: pytest.TerminalReporter) -> None:
        """Print the tests with the highest memory peaks, and among equal ones most CPU time."""
        terminal.section(f"{min(self._count, len(self._rows))} most expensive tests in containers")
        terminal.line(f"{'memory peak':>12} {'CPU':>10} {'wall':>10}  test")
        for row in sorted(self._rows.values(), reverse=True)[: self._count]:
            terminal.line(f"{mib(row.memory):>12} {row.cpu:8.3f} s {row.wall:8.3f} s  {row.nodeid}")

    def _print_kept(self, terminal: pytest.TerminalReporter) -> None:
        terminal.section("kept containers")
        for name, nodeid in list(self._kept.items())[:_MAX_KEPT_SHOWN]:
            terminal.line(f"pytest-sandbox shell {name}  # {nodeid}")
        if len(self._kept) > _MAX_KEPT_SHOWN:
            terminal.line(f"... and {len(self._kept) - _MAX_KEPT_SHOWN} more")
