"""What a test inside came to: an answer for each phase, from the fork's reports, or from how the
fork ended where they are missing.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.outcome import Exited, OOMKilled, Outcome
from pytest_sandbox.plugin import compat, crash_report, hints, keep, report_sections

if TYPE_CHECKING:
    from pytest_sandbox.container.container import Container
    from pytest_sandbox.plugin.report_channel import Receiver

__all__ = ["Answer", "Finding"]

_PHASES = ("setup", "call", "teardown")


class Answer:
    """A phase's report, and the exception that it is about."""

    def __init__(self, report: pytest.TestReport, error: BaseException | None = None) -> None:
        self.report = report
        self._error = error
        self._excinfo: pytest.ExceptionInfo[BaseException] | None = None

    def copy(self) -> pytest.TestReport:
        """Return a report that may be changed without changing this one."""
        made = copy.copy(self.report)
        made.sections = list(made.sections)
        made.user_properties = list(made.user_properties)
        return made

    def exception(self) -> pytest.ExceptionInfo[BaseException] | None:
        """Return the exception, for those who ask what a report is about."""
        if self._error is not None and self._excinfo is None:
            call = pytest.CallInfo.from_call(self._raise, when="call", reraise=())
            self._excinfo = call.excinfo
        return self._excinfo

    def _raise(self) -> None:
        assert self._error is not None
        raise self._error

    def spoil(self, text: str) -> None:
        """Make the report a failure that says ``text``."""
        self.report.outcome, self.report.longrepr = "failed", text
        vars(self.report).pop("wasxfail", None)

    def is_shown(self, call: pytest.CallInfo[Any]) -> bool:
        """Tell whether the phase's exception is this one, and not the parent's own."""
        return self._excinfo is not None and call.excinfo is self._excinfo


class Finding:
    """How the fork ended, and what it sent until then; ``answers`` by phase, ``logged`` what others
    logged, ``exit`` phase and reason of an end.
    """

    def __init__(
        self,
        item: pytest.Item,
        container: Container,
        receiver: Receiver,
        outcome: Outcome,
        time: tuple[float, float],
        printed: list[tuple[str, str]],
    ) -> None:
        self.item = item
        self.container = container
        self.outcome = outcome
        self.stats = container.handle.figures()
        self.answers: dict[str, Answer] = {}
        self.logged: list[pytest.TestReport] = []
        self.exit: tuple[str, str, int | None] | None = None
        self._receiver = receiver
        self._symptoms: list[hints.Symptom] = []
        self._read_all()
        if receiver.invalid:
            self._refuse(*time, printed)
        elif not self._is_finished:
            self._crash(crash_report.said(outcome, receiver, self.stats), *time, printed)

    @property
    def _is_finished(self) -> bool:
        return (
            isinstance(self.outcome, Exited)
            and self.outcome.status == 0
            and any(news.kind == "done" for news in self._receiver.news)
        )

    @property
    def _phase(self) -> str:
        """The phase that has not been reported; the last where all have."""
        return next((when for when in _PHASES if when not in self.answers), _PHASES[-1])

    def _read_all(self) -> None:
        try:
            self._read()
        except Exception as error:  # noqa: BLE001 - a report that passed its schema, but not pytest
            self._receiver.invalid = f"a report cannot be read ({type(error).__name__}: {error})"

    def _read(self) -> None:
        for kind, data in self._receiver.news:
            if kind == "report":
                report = self._report(data["report"])
                self.answers[report.when] = Answer(report, data["error"])
                self._symptoms += [hints.Symptom(*one) for one in data["symptoms"]]
            elif kind == "logged":
                self.logged.append(self._report(data))
            elif kind == "exit":
                self.exit = (self._phase, *data)

    def _report(self, data: dict[str, Any]) -> Any:
        """Make a report again."""
        report = self.item.config.hook.pytest_report_from_serializable(
            config=self.item.config, data=data
        )
        compat.restore_subtest(report, data)
        if report.failed:
            _ = report.longreprtext  # raises here what a terminal would meet later
        return report

    def _refuse(self, started: float, stopped: float, printed: list[tuple[str, str]]) -> None:
        """Fail the test whose process sent an invalid message, whatever else it has reported.

        A failure of its own stays, with a section about the message.
        """
        self._receiver.forget()
        self.logged.clear()
        self.exit = None
        text = crash_report.refused(self._receiver.invalid)
        failed = next((one.report for one in self.answers.values() if one.report.failed), None)
        if failed is not None:
            failed.sections.append(("invalid report", text))
            return
        if self._phase != "setup" and self.answers["setup"].report.passed:
            self.answers = {"setup": self.answers["setup"]}
        else:
            self.answers.clear()
        self._crash(text, started, stopped, printed)

    def _crash(
        self, text: str, started: float, stopped: float, printed: list[tuple[str, str]]
    ) -> None:
        """Answer for the phase in which the fork ended: never as the failure that a mark
        expects.
        """
        when = self._phase
        done = [answer.report for answer in self.answers.values()]
        began = max([started, *(report.stop for report in done)])
        call = pytest.CallInfo.from_call(lambda: pytest.fail(text, pytrace=False), when)  # type: ignore[arg-type]
        call.start, call.stop, call.duration = began, stopped, stopped - began
        report = pytest.TestReport.from_item_and_call(self.item, call)
        earlier = list(done[-1].sections) if done else []
        report.sections = [*earlier, *((f"Captured {name} {when}", said) for name, said in printed)]
        report.user_properties = list(done[-1].user_properties) if done else []
        self.answers[when] = Answer(report, call.excinfo.value if call.excinfo else None)

    def conclude(self) -> None:
        """Put figures, changes and hints into the reports, and keep the layer if that is wanted."""
        failed = [answer.report for answer in self.answers.values() if answer.report.failed]
        failed += [report for report in self.logged if report.failed]
        kept = keep.keep(self.item, self.container, failed=bool(failed))
        sections = self._sections(kept) if failed else []
        if self._receiver.has_written:
            hints.remember(self.item, self.container)
        for report in failed:
            report.sections.extend(sections)
        reports = [answer.report for answer in self.answers.values()]
        self.item.user_properties[:] = reports[-1].user_properties
        report_sections.add_properties(
            self.item,
            self.container,
            self.stats,
            killed=isinstance(self.outcome, OOMKilled),
            kept=kept,
        )
        for report in reports:
            if report.when != "setup" or report.failed:
                report.user_properties = list(self.item.user_properties)

    def _sections(self, kept: str | None) -> list[tuple[str, str]]:
        sections = report_sections.sections(self.container, self.stats, kept)
        said = hints.said(self._symptoms, self.item, self.container, self.stats)
        return [*sections, ("hint", said)] if said else sections
