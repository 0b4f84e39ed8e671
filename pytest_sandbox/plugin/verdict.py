"""What a test inside came to: its reports replayed in the parent, or one clear failure where it ended without them."""

from __future__ import annotations

import importlib
import signal
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.outcome import Exited, OOMKilled, Outcome, Signaled, TimedOut
from pytest_sandbox.plugin import compat, coverage_data

if TYPE_CHECKING:
    from pytest_sandbox.container import Container
    from pytest_sandbox.outcome import Stats

__all__ = ["Finding", "report_unstarted"]

_MOST_CHANGES = 20
_MIB = 1 << 20


@dataclass
class Finding:
    """How the fork ended, and what it sent until then."""

    outcome: Outcome
    container: Container
    received: list[dict[str, Any]]
    timeout: float | None
    started: float
    stopped: float

    def replay(self, item: pytest.Item) -> None:
        """Give the parent's plugins every report and warning, with the container's figures; and the verdict, where the end is missing."""
        stats = self.container.stats()
        item.ihook.pytest_sandbox_outcome(item=item, outcome=self.outcome, stats=stats)
        finished = any(one["kind"] in {"done", "exit", "interrupt"} for one in self.received)
        reports = []
        for one in self.received:
            if one["kind"] == "report":
                reports.append(item.config.hook.pytest_report_from_serializable(config=item.config, data=one["data"]))
            elif one["kind"] == "warning":
                _warn(item, one["data"])
            elif one["kind"] == "coverage":
                coverage_data.merge(one["data"])
        if not finished:
            reports = [report for report in reports if report.when == "setup"] + [self._crash(item)]
        for report in reports:
            if report.when == "call":
                report.user_properties.extend(_properties(stats, self.outcome))
            if report.failed:
                report.sections.extend(self._sections(stats))
            item.ihook.pytest_runtest_logreport(report=report)

    def _crash(self, item: pytest.Item) -> pytest.TestReport:
        text = _said(self.outcome, self.timeout)
        return _failed(item, text, self.started, self.stopped, compat.take_captured(item))

    def _sections(self, stats: Stats) -> list[tuple[str, str]]:
        changes = [str(change) for change in self.container.diff()]
        shown = changes[:_MOST_CHANGES]
        if len(changes) > _MOST_CHANGES:
            shown.append(f"... and {len(changes) - _MOST_CHANGES} more")
        found = [("container", _figures(self.container, stats))]
        return [*found, ("changes", "\n".join(shown))] if shown else found

    def end_session(self) -> None:
        """End the session where the test asked for it."""
        for one in self.received:
            if one["kind"] == "exit":
                pytest.exit(*one["data"])
            if one["kind"] == "interrupt":
                raise KeyboardInterrupt


def report_unstarted(item: pytest.Item, error: Exception) -> None:
    """Report that a test's container could not be made."""
    item.ihook.pytest_runtest_logreport(report=_failed(item, f"{type(error).__name__}: {error}", 0, 0, [], when="setup"))


def _failed(
    item: pytest.Item, text: str, start: float, stop: float, sections: list[tuple[str, str]], when: Any = "call"
) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords=dict.fromkeys(item.keywords, 1),
        outcome="failed",
        longrepr=text,
        when=when,
        sections=sections,
        duration=stop - start,
        start=start,
        stop=stop,
        user_properties=list(item.user_properties),
    )


def _said(outcome: Outcome, timeout: float | None) -> str:
    if isinstance(outcome, OOMKilled):
        limit = "none" if outcome.limit is None else f"{outcome.limit / _MIB:.0f} MiB"
        return f"killed for memory: limit {limit}, peak {outcome.peak / _MIB:.0f} MiB, of which files {outcome.files / _MIB:.0f} MiB"
    if isinstance(outcome, TimedOut):
        ran = "".join(f"\n  {line}" for line in outcome.processes)
        return f"timeout: the test ran longer than {timeout:g} s and was killed; inside ran:{ran}"
    if isinstance(outcome, Signaled):
        return f"killed by {signal.Signals(outcome.signal).name}"
    assert isinstance(outcome, Exited)
    return f"the test's process ended by itself with status {outcome.status} before the test was over (os._exit?)"


def _figures(container: Container, stats: Stats) -> str:
    limits = ", ".join(f"{key}={value}" for key, value in container.settings.raw().items()) or "defaults"
    peak = "unknown" if stats.memory_peak is None else f"{stats.memory_peak / _MIB:.1f} MiB"
    cpu = "unknown" if stats.cpu_seconds is None else f"{stats.cpu_seconds:.3f} s"
    return f"{container.id}: {limits}\nmemory peak {peak}, CPU {cpu}, processes at most {stats.pids_peak}, OOM kills {stats.oom_kills}"


def _properties(stats: Stats, outcome: Outcome) -> list[tuple[str, object]]:
    return [
        ("container.memory_peak", stats.memory_peak),
        ("container.cpu_seconds", stats.cpu_seconds),
        ("container.pids_peak", stats.pids_peak),
        ("container.oom_killed", isinstance(outcome, OOMKilled)),
    ]


def _warn(item: pytest.Item, data: dict[str, Any]) -> None:
    module, name = data["category"]
    category = getattr(importlib.import_module(module), name, UserWarning) if module in {"builtins", "pytest"} else UserWarning
    message = warnings.WarningMessage(category(data["message"]), category, data["filename"], data["lineno"])
    location = tuple(data["location"]) if data["location"] else None
    item.config.hook.pytest_warning_recorded.call_historic(
        kwargs={"warning_message": message, "when": data["when"], "nodeid": data["nodeid"], "location": location}
    )
