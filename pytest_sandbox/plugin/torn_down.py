"""What the process of a scope reports about a teardown that belongs to no test which it has run:
the scope ends, or the parent has skipped the test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pytest_sandbox.plugin import coverage_data, scopes, session_state
from pytest_sandbox.plugin.results import restored_report

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

    from pytest_sandbox.plugin.report_channel import Receiver
    from pytest_sandbox.plugin.results import PhaseResult

__all__ = ["TornDown", "add_to_teardown", "torn_down"]


class TornDown(NamedTuple):
    """The text of the failure, "" if there is none, and the sections with what was printed."""

    problem: str = ""
    sections: tuple[tuple[str, str], ...] = ()


def torn_down(item: pytest.Item, receiver: Receiver) -> TornDown:
    """Return what was reported, and apply what has changed in the session. The test may have run
    there: a hook can skip a test in the parent only.
    """
    if receiver.invalid:
        receiver.drop_all_but_reports()
    reports = {data["report"]["when"]: data["report"] for data in receiver.of_kind("report")}
    session_state.apply_to_session(item, receiver)
    coverage_data.merge(receiver)
    if not receiver.is_done:
        return TornDown(
            f"the fixtures of the {scopes.scope_of(item)} were not torn down: "
            f"{receiver.invalid or 'the process ended, or took too long'}"
        )
    if "teardown" not in reports:
        return TornDown()
    report = restored_report(item, reports["teardown"])
    return TornDown(_text(report) if report.failed else "", tuple(report.sections))


def _text(report: pytest.TestReport) -> str:
    """Return the text of a failure after its message, which pytest shows in the summary."""
    crash = getattr(report.longrepr, "reprcrash", None)
    message = "" if crash is None else crash.message.partition("\n")[0]
    return f"{message}\n\n{report.longreprtext}" if message else report.longreprtext


def add_to_teardown(item: pytest.Item, phase: PhaseResult | None, found: Iterable[TornDown]) -> str:
    """Add what was torn down to the teardown phase of an item; return the text of the failure if
    that has no result.
    """
    sections = [section for one in found for section in one.sections]
    problem = "\n".join(one.problem for one in found if one.problem)
    if phase is None:
        for title, text in sections:
            if title.startswith("Captured "):
                item.add_report_section("teardown", title.split()[1], text)
        return problem
    phase.report.sections += sections
    if problem:
        phase.fail("\n".join(filter(None, [phase.report.longreprtext, problem])))
    return ""
