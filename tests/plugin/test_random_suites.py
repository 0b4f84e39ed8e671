"""A test inside has the results that it has in plain pytest: shown with random suites.

The variable ``RANDOM_SUITES`` is the number of suites, ``RANDOM_SUITES_FIRST`` the first seed.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from random_suites import SCOPES, Suite, random_suite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.needs("root")

_FIRST = int(os.environ.get("RANDOM_SUITES_FIRST", "0"))
_SEEDS = range(_FIRST, _FIRST + int(os.environ.get("RANDOM_SUITES", "8")))
#: Of so many seeds, one is used for new interpreters: each test starts one.
_FRESH_EVERY = 4

_RECORDER = """
import json, os

def write(kind, data):
    with open(os.environ["RECORD"], "a") as file:
        file.write(json.dumps([kind, data]) + "\\n")

def pytest_runtest_logreport(report):
    crash = getattr(report.longrepr, "reprcrash", None)
    write("report", {
        "nodeid": report.nodeid,
        "when": report.when,
        "type": type(report).__name__,
        "outcome": report.outcome,
        "wasxfail": getattr(report, "wasxfail", None),
        "crash": crash and str(crash),
        "text": report.longreprtext,
        "skipped at": report.longrepr if type(report.longrepr) is tuple else None,
        "sections": [list(one) for one in report.sections],
        "properties": [list(one) for one in report.user_properties],
    })

def pytest_warning_recorded(warning_message, when, nodeid, location):
    category, text = warning_message.category.__name__, str(warning_message.message)
    line = f"{os.path.basename(warning_message.filename)}:{warning_message.lineno}"
    write("warning", [when, nodeid, category, text, line])
"""
_IGNORED_SECTIONS = {"container", "changes", "hint", "shared container", "artifacts"}


@dataclass(frozen=True)
class Mode:
    """Options of this plugin; ``scope`` is that of the containers."""

    name: str
    options: tuple[str, ...] = ()
    scope: str = "function"


_PLAIN = Mode("plain")
_MODES = (
    Mode("sandbox", ("--sandbox",)),
    Mode("jobs", ("--sandbox", "--sandbox-jobs=4")),
    Mode("module", ("--sandbox", "--sandbox-scope=module"), "module"),
    Mode("class", ("--sandbox", "--sandbox-scope=class", "--sandbox-jobs=2"), "class"),
)
_FRESH = Mode("fresh", ("--sandbox", "--sandbox-fresh"))


@dataclass
class Results:
    """What is compared of one run."""

    status: int
    output: str
    reports: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[list[str]] = field(default_factory=list)

    @property
    def counts(self) -> str:
        """The line of the summary, without the time."""
        lines = [line for line in self.output.splitlines() if re.search(r" in \d+\.\d+s", line)]
        return re.sub(r" in \d+\.\d+s.*", "", lines[-1]).strip("= ") if lines else ""


@dataclass
class Runner:
    """Runs suites in directories of their own."""

    path: Path

    def results(self, suite: Suite, mode: Mode) -> list[Results]:
        """Return the results of each run of a suite."""
        # The name is part of paths, whose length decides how lines are shortened.
        directory = self.path / f"{mode.name:_<7}"
        for name, text in {**suite.files, "pytest.ini": "[pytest]\n"}.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(text)
        return [self._run(directory, mode, arguments) for arguments in suite.runs]

    def _run(self, directory: Path, mode: Mode, arguments: list[str]) -> Results:
        (self.path / "recorder.py").write_text(_RECORDER)
        record = self.path / f"{mode.name}.jsonl"
        record.unlink(missing_ok=True)
        options = []
        if mode.options:
            options = ["-p", "sandbox", "-o", "sandbox_jobs_hooks=recorder", *mode.options]
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-p", "recorder", "-o", "addopts="),
                *(f"--basetemp={self.path / 'tmp'}", *options, *arguments),
            ],
            cwd=directory,
            env=self._environment(record),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        found = Results(done.returncode, done.stdout + done.stderr)
        for line in record.read_text().splitlines() if record.exists() else ():
            kind, data = json.loads(_normalized(line, directory))
            (found.reports if kind == "report" else found.warnings).append(data)
        return found

    def _environment(self, record: Path) -> dict[str, str]:
        kept = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST")}
        return {
            **kept,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": str(self.path),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "RECORD": str(record),
            "COLUMNS": "200",
        }


def _normalized(text: str, directory: Path) -> str:
    text = text.replace(str(directory), "DIRECTORY")
    return re.sub(r"0x[0-9a-f]{6,}", "0xADDRESS", text)


# -- the comparison, with what is documented to differ


def _comparable(results: Results, mode: Mode, suite: Suite) -> Iterator[tuple[str, Any]]:
    """Yield what has to be equal, each with a name."""
    if mode.scope != "function" and (suite.may_stop_early or suite.enters_twice(mode.scope)):
        # Each container sets up the fixtures of its scope, and wider ones of all its tests.
        yield from _outcomes(results)
        return
    yield "exit status", results.status
    for number, report in enumerate(results.reports):
        name = f"report {number} ({report['nodeid']}, {report['when']})"
        kept = dict(report)
        kept["crash"], kept["text"] = _crash(report), _text(report)
        kept["sections"] = _sections(report, mode)
        kept["properties"] = [
            one for one in report["properties"] if not one[0].startswith("container.")
        ]
        yield name, kept
    yield "number of reports", len(results.reports)
    yield "warnings", sorted(_warning(one, mode) for one in results.warnings)
    yield "summary", results.counts


def _outcomes(results: Results) -> Iterator[tuple[str, Any]]:
    for report in results.reports:
        if report["when"] != "teardown":
            yield "outcome", [report[name] for name in ("nodeid", "when", "outcome", "wasxfail")]


def _crash(report: dict[str, Any]) -> str:
    """Return where a test has failed: without the line for a group, which this plugin may make."""
    crash: str | None = report["crash"]
    return re.sub(r".*: ((Base)?ExceptionGroup: errors during test teardown)", r"\1", crash or "")


def _text(report: dict[str, Any]) -> str:
    """Return the text of a failure: only the exceptions of a group, whose frames pytest shows with
    those of this plugin.
    """
    text: str = report["text"].replace("container, container_factory, ", "")  # of this plugin
    if "_pytest/runner.py" in text and "col.setup()" in text:  # shows only frames of pytest
        return text.rpartition("\n")[2]
    if "Exception Group Traceback" not in text and "Traceback (most recent call last)" not in text:
        return text
    frame = re.compile(r'[ |+]*(File ".*|\s{4}.*|\^+|-+)')
    return "\n".join(line for line in text.splitlines() if not frame.fullmatch(line))


def _sections(report: dict[str, Any], mode: Mode) -> list[list[str]]:
    # A subtest writes its letter of the progress into the output of its test.
    sections = [
        [title, re.sub(r"^[u,\-yY]+(?=test_\d+ sub|$)", "", text, flags=re.MULTILINE)]
        for title, text in report["sections"]
        if title not in _IGNORED_SECTIONS
    ]
    if mode.scope == "function":
        return sections
    # Fixtures of wider scopes are set up before the first test of a scope (docs/how-to/scopes.md).
    filtered = [[title, _without_wider(text, mode).strip("\n")] for title, text in sections]
    return [one for one in filtered if one[1]]


def _is_wider(line: str, mode: Mode) -> bool:
    return any(f"[{scope}]" in line for scope in SCOPES[SCOPES.index(mode.scope) + 1 :])


def _without_wider(text: str, mode: Mode) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not _is_wider(line, mode))


def _warning(warning: list[str], mode: Mode) -> list[str]:
    when, nodeid, *rest = warning
    is_elsewhere = mode.scope != "function" and _is_wider(rest[1], mode)
    return [when, "" if is_elsewhere else nodeid, *rest]


def _difference(plain: Results, inside: Results, mode: Mode, suite: Suite) -> str:
    """Return a text about the first difference; "" if there is none."""
    pairs = zip(_comparable(plain, mode, suite), _comparable(inside, mode, suite), strict=False)
    for (name, expected), (_, actual) in pairs:
        if expected != actual:
            before, after = (_lines(one) for one in (expected, actual))
            diff = difflib.unified_diff(before, after, "plain", mode.name, lineterm="", n=2)
            return f"{name} differs:\n" + "\n".join(diff)
    return ""


def _lines(value: Any) -> list[str]:
    return json.dumps(value, indent=1).replace("\\n", "\n   ").splitlines()


def _compare(suite: Suite, mode: Mode, run: Callable[[Suite, Mode], list[Results]]) -> None:
    plain, inside = run(suite, _PLAIN), run(suite, mode)
    for number, (expected, actual) in enumerate(zip(plain, inside, strict=True), 1):
        if difference := _difference(expected, actual, mode, suite):
            pytest.fail(
                f"seed {suite.seed}, {' '.join(mode.options)}, run {number}: {difference}\n\n"
                f"RANDOM_SUITES=1 RANDOM_SUITES_FIRST={suite.seed} repeats it. The suite:\n\n"
                f"{suite.source}\n\nThe output inside:\n\n{actual.output[-3000:]}",
                pytrace=False,
            )


@pytest.fixture
def runner(tmp_path: Path) -> Callable[[Suite, Mode], list[Results]]:
    """Return a function that runs a suite in a mode, in plain pytest only once."""
    runner, known = Runner(tmp_path), {}

    def run(suite: Suite, mode: Mode) -> list[Results]:
        if (suite.seed, mode.name) not in known:
            known[suite.seed, mode.name] = runner.results(suite, mode)
        return known[suite.seed, mode.name]

    return run


@pytest.mark.parametrize("seed", _SEEDS)
def test_a_random_suite_has_the_results_of_plain_pytest(runner, seed):
    """Reports, warnings, counts and the exit status are those of plain pytest, in every mode."""
    suite = random_suite(seed)
    for mode in _MODES:
        _compare(suite, mode, runner)


@pytest.mark.parametrize("seed", _SEEDS[::_FRESH_EVERY])
def test_a_random_suite_has_the_results_of_plain_pytest_in_new_interpreters(runner, seed):
    """Function-scoped fixtures and tests report the same in new interpreters."""
    _compare(random_suite(seed, only_functions=True), _FRESH, runner)
