"""What the process of a scope reports about a teardown that belongs to no test which it has run:
the scope ends, or the parent has skipped the test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from pytest_sandbox.plugin import coverage_data, scopes, session_state
from pytest_sandbox.plugin.report_sections import add_captured
from pytest_sandbox.plugin.results import restored_report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.plugin.report_channel import Receiver
    from pytest_sandbox.plugin.results import PhaseResult

__all__ = ["TornDown", "add_to_teardown", "torn_down"]


class TornDown(NamedTuple):
    """The exception of a teardown, None if there is none, how its report shows it, and the sections
    with what was printed.
    """

    error: BaseException | None = None
    longrepr: Any = None
    sections: tuple[tuple[str, str], ...] = ()

    @property
    def problem(self) -> str:
        """The text of the failure; "" if there is none, or only a skip or an expected failure."""
        expected = (pytest.skip.Exception, pytest.xfail.Exception)
        if self.error is None or isinstance(self.error, expected):
            return ""
        return str(self.longrepr)


def torn_down(item: pytest.Item, receiver: Receiver) -> TornDown:
    """Return what was reported, and apply what has changed in the session. The test may have run
    there: a hook can skip a test in the parent only.
    """
    if receiver.invalid:
        receiver.drop_all_but_reports()
    reports = {data["report"]["when"]: data for data in receiver.of_kind("report")}
    session_state.apply_to_session(item, receiver)
    coverage_data.merge(receiver)
    if not receiver.is_done:
        return _failed(
            f"the fixtures of the {scopes.scope_of(item)} were not torn down: "
            f"{receiver.invalid or 'the process ended, or took too long'}"
        )
    if "teardown" not in reports:
        return TornDown()
    report = restored_report(item, reports["teardown"]["report"])
    sections = tuple(report.sections)
    if report.passed:
        return TornDown(sections=sections)
    error = reports["teardown"]["error"]
    if error is None:  # a hook has set the outcome
        return _failed(report.longreprtext, sections)
    return TornDown(error, report.longrepr, sections)


def _failed(text: str, sections: tuple[tuple[str, str], ...] = ()) -> TornDown:
    return TornDown(pytest.fail.Exception(text, pytrace=False), text, sections)


def add_to_teardown(
    item: pytest.Item, phase: PhaseResult | None, found: Sequence[TornDown]
) -> TornDown:
    """Add what was torn down to the teardown phase of an item; return what the parent has to raise
    in that phase, where pytest looks at marks ``xfail``.

    If the phase has an exception itself, that is a group of both, as pytest makes it.
    """
    sections = [section for one in found for section in one.sections]
    raised = [one for one in found if one.error is not None]
    if phase is not None:
        add_captured(phase.report.sections, sections)
    else:
        for title, text in sections:
            if title.startswith("Captured "):
                item.add_report_section("teardown", title.split()[1], text)
    if raised and phase is not None and not phase.report.passed:
        return _both(phase, raised)
    if len(raised) > 1:
        return _failed("\n".join(str(one.longrepr) for one in raised))
    return raised[0] if raised else TornDown()


def _both(phase: PhaseResult, raised: Sequence[TornDown]) -> TornDown:
    found = [*(one.error for one in raised), phase.error]
    errors = [one for one in found if one is not None]
    texts = [phase.report.longreprtext, *(str(one.longrepr) for one in raised)]
    phase.error = None
    error = BaseExceptionGroup("errors during test teardown", errors)
    return TornDown(error, "\n".join(filter(None, texts)))
