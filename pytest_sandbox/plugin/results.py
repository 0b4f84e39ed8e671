"""The result of a test in a container: a pytest report for each phase.

protocol.py creates a :class:`TestResult` when the test process has ended. The reports come from the
messages that it sent; for one that is missing, from how the process ended (crash_report.py). Then
report_sections.py, hints.py and user_properties.py add what the container used and changed.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from pytest_sandbox.outcome import Exited, OOMKilled, TimedOut
from pytest_sandbox.plugin import (
    artifacts,
    compat,
    crash_report,
    hints,
    keep,
    network_report,
    report_sections,
    scopes,
    service_fixtures,
    unkept_files,
)
from pytest_sandbox.plugin.user_properties import is_of_container, set_properties

if TYPE_CHECKING:
    from pytest_sandbox.container.container import Container
    from pytest_sandbox.outcome import Outcome, Stats
    from pytest_sandbox.plugin.report_channel import Receiver

__all__ = ["Ended", "PhaseResult", "TestResult", "restored_report"]

_PHASES = ("setup", "call", "teardown")


class Ended(NamedTuple):
    """What is known of a test that has ended.

    ``times`` are its start and end in seconds since the epoch; files that have last changed before
    ``since`` nanoseconds are of earlier tests in its container. ``output`` is the name and content
    of its captured streams, ``note`` what a report of a failure says about the other tests of its
    container, ``blocked`` what its forwarder has refused (network_report.py).
    """

    receiver: Receiver
    outcome: Outcome
    times: tuple[float, float]
    since: int
    output: list[tuple[str, str]]
    stats: Stats
    note: str
    blocked: list[dict[str, Any]] | None


class PhaseResult:
    """The report of a phase, and its exception if there is one."""

    def __init__(self, report: pytest.TestReport, error: BaseException | None = None) -> None:
        self.report = report
        self.error = error

    def copy_report(self) -> pytest.TestReport:
        """Return a copy of the report, with lists of its own."""
        made = copy.copy(self.report)
        made.sections = list(made.sections)
        made.user_properties = list(made.user_properties)
        return made

    def adopt_private(self, changed: object) -> None:
        """Take over the private attributes that hooks have given to the copy and the report lacks:
        what is not data does not come from the test process.
        """
        own = vars(self.report)
        for name, value in getattr(changed, "__dict__", {}).items():
            if name.startswith("_"):
                own.setdefault(name, value)

    def raise_error(self) -> None:
        """Raise the phase's exception, as the phase itself does without a container: a plugin that
        repeats tests may look at nothing else.

        Not an interrupt of the test's process, or its wish to end the session.
        """
        __tracebackhide__ = True
        if not isinstance(self.error, (KeyboardInterrupt, pytest.exit.Exception)):
            self._raise()

    def _raise(self) -> None:
        __tracebackhide__ = True
        if self.error is not None:
            raise self.error

    def is_error_of(self, call: pytest.CallInfo[Any]) -> bool:
        """Tell whether the exception of a call is this phase's, not one of the parent's own."""
        return call.excinfo is not None and call.excinfo.value is self.error

    def excinfo(self, call: pytest.CallInfo[Any]) -> pytest.ExceptionInfo[BaseException] | None:
        """Return the exception, as hooks find it in ``call.excinfo``."""
        if self.error is None:
            return None
        if self.is_error_of(call):
            return call.excinfo
        return pytest.CallInfo.from_call(self._raise, call.when, reraise=()).excinfo

    def fail(self, text: str) -> None:
        """Make the report a failure with this text."""
        self.report.outcome, self.report.longrepr = "failed", text
        vars(self.report).pop("wasxfail", None)


def restored_report(item: pytest.Item, data: dict[str, Any]) -> Any:
    """Return a report of a test process as an object."""
    if not ("$report_type" in data or "_report_type" in data):  # a short one (messages.py)
        return pytest.TestReport(**{**data, "nodeid": compat.identity(item)})
    config = item.config
    report = config.hook.pytest_report_from_serializable(config=config, data=data)
    compat.restore_subtest(report, data)
    if report.failed:
        _ = report.longreprtext  # raises what the terminal reporter would raise later
    return report


class TestResult:
    """The result of one test.

    - ``outcome``: how the test process ended.
    - ``stats``: what its container used.
    - ``phases``: the result of each phase that was run, by its name.
    - ``logged``: reports that other plugins logged, such as those of subtests.
    - ``exit``: if the test called ``pytest.exit()``, the phase, reason and return code.
    """

    def __init__(self, item: pytest.Item, container: Container, ended: Ended) -> None:
        self.item = item
        self.container = container
        self.outcome = ended.outcome
        self.stats = ended.stats
        self._note = note = ended.note
        self._receiver = receiver = ended.receiver
        self.phases: dict[str, PhaseResult] = {}
        self.logged: list[pytest.TestReport] = []
        self.exit: tuple[str, str, int | None] | None = None
        self._symptoms: list[hints.Symptom] = []
        self._time = ended.times
        self._since = ended.since
        self._output = ended.output
        self._blocked = ended.blocked
        self._read_all()
        if receiver.invalid:
            self._fail_as_invalid()
        elif not self._is_complete:
            text = crash_report.describe(self.outcome, receiver, self.stats)
            text = f"{text}\n{note}" if note else text
            self._fail_unreported_phase(text, self._unreported_phase)

    @property
    def _is_complete(self) -> bool:
        return (
            isinstance(self.outcome, Exited)
            and self.outcome.status == 0
            and any(message.kind == "done" for message in self._receiver.messages)
        )

    @property
    def _unreported_phase(self) -> Any:
        """The first phase without a report; the last phase if all have one."""
        return next((when for when in _PHASES if when not in self.phases), _PHASES[-1])

    def _read_all(self) -> None:
        try:
            self._read()
        except Exception as error:  # noqa: BLE001 - it fits its schema, but not pytest
            self._receiver.invalid = f"a report cannot be read ({type(error).__name__}: {error})"

    def _read(self) -> None:
        for kind, data in self._receiver.messages:
            if kind == "report":
                report = self._report(data["report"])
                self.phases[report.when] = PhaseResult(report, data["error"])
                self._symptoms += [hints.Symptom(*one) for one in data["symptoms"]]
            elif kind == "logged":
                self.logged.append(self._report(data))
            elif kind == "exit":
                self.exit = (self._unreported_phase, *data)

    def _report(self, data: dict[str, Any]) -> Any:
        return restored_report(self.item, data)

    def _fail_as_invalid(self) -> None:
        """Fail the test because of an invalid message, whatever else it has reported.

        A failure that it has reported stays, with a section about the message.
        """
        self._receiver.drop_all_but_reports()
        self.logged.clear()
        self.exit = None
        text = crash_report.invalid_report(self._receiver.invalid)
        failed = next((one.report for one in self.phases.values() if one.report.failed), None)
        if failed is not None:
            failed.sections.append(("invalid report", text))
            return
        if self._unreported_phase != "setup" and self.phases["setup"].report.passed:
            self.phases = {"setup": self.phases["setup"]}
        else:
            self.phases.clear()
        self._fail_unreported_phase(text, self._unreported_phase)

    def _fail_unreported_phase(self, text: str, when: Any) -> None:
        """Add a failure of the phase ``when``.

        A mark ``xfail`` has no effect on it.
        """
        earlier = [phase.report for phase in self.phases.values()]
        start, stop = self._time
        start = max([start, *(report.stop for report in earlier)])
        call = pytest.CallInfo.from_call(lambda: pytest.fail(text, pytrace=False), when)
        call.start, call.stop, call.duration = start, stop, stop - start
        report = pytest.TestReport.from_item_and_call(self.item, call)
        report.sections = list(earlier[-1].sections) if earlier else []
        report.sections += [(f"Captured {name} {when}", content) for name, content in self._output]
        report.user_properties = list(earlier[-1].user_properties) if earlier else []
        self.phases[when] = PhaseResult(report, call.excinfo.value if call.excinfo else None)

    def phase(self, when: Any) -> PhaseResult | None:
        """Return the result of a phase.

        One without a report fails; None if the test was over before it: an earlier phase has
        failed, or has called ``pytest.exit()``.
        """
        if when in self.phases:
            return self.phases[when]
        is_over = self.exit is not None or any(one.report.failed for one in self.phases.values())
        if not is_over:
            text = f"the test's process has sent no report of the phase {when!r}"
            self._fail_unreported_phase(text, when)
        return self.phases.get(when)

    def exit_session(self, when: str) -> None:
        """End the session if the test has called ``pytest.exit()`` in this phase."""
        if self.exit is not None and self.exit[0] == when:
            pytest.exit(*self.exit[1:])

    def longrepr_of(self, error: BaseException) -> Any:
        """Return the text of the exception of a phase; None for any other exception."""
        found = (one.report.longrepr for one in self.phases.values() if one.error is error)
        return next(found, None)

    def add_details(self) -> None:
        """Add to the reports what the container used and changed; keep its layer if
        ``--sandbox-keep`` says so, and copy the artifacts.
        """
        reports = [phase.report for phase in self.phases.values()]
        failed = [report for report in (*reports, *self.logged) if report.failed]
        kept = keep.keep_layer(self.item, self.container, failed=bool(failed))
        sections = self._sections(kept) if failed else []
        changes = None
        if self._receiver.may_have_created_files:
            changes = hints.remember_created_files(self.item, self.container, self._since)
        copied: list[str] = []
        if self._receiver.may_have_created_files or self.container.settings.artifacts:
            # After all that compares the container with the host.
            copied = artifacts.copy_artifacts(self.item, self.container, changes, self._since)
            sections += artifacts.section(copied)
        if changes and not failed:
            unkept_files.record(self.item, changes, copied)
        for report in failed:
            report.sections.extend(sections)
        network_report.add_section(
            self.item, self.container, self._blocked, self._receiver, reports
        )
        self._add_properties(reports, kept)

    def _add_properties(self, reports: list[pytest.TestReport], kept: str | None) -> None:
        self.item.user_properties[:] = reports[-1].user_properties
        oom_killed = isinstance(self.outcome, OOMKilled)
        set_properties(self.item, self.container, self.stats, oom_killed=oom_killed, kept=kept)
        added = [one for one in self.item.user_properties if is_of_container(one)]
        for report in reports:
            if report.when != "setup" or report.failed:
                report.user_properties = [*report.user_properties, *added]

    def _sections(self, kept: str | None) -> list[tuple[str, str]]:
        sections = report_sections.sections(self.container, self.stats, kept, self._since)
        sections += service_fixtures.sections(self.item)
        if isinstance(self.outcome, TimedOut):
            self._symptoms.append(hints.Symptom("waited"))
        text = hints.describe(self._symptoms, self.item, self.container, self.stats)
        if self._note and scopes.is_shared(self.item):
            sections.append(("shared container", self._note))
        return [*sections, ("hint", text)] if text else sections
