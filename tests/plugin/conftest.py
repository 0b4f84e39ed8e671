"""Fixtures that run pytest in a process of its own, with this plugin and those a test names."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., pytest.RunResult]
    Reports = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that writes a test file and runs it, with ``--sandbox`` unless
    ``sandbox=False``.
    """
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name in (
        "PYTEST_ADDOPTS",
        "PYTEST_XDIST_WORKER",
        "PYTEST_XDIST_WORKER_COUNT",
        "PYTEST_XDIST_TESTRUNUID",
    ):
        monkeypatch.delenv(name, raising=False)

    def run(
        source: str, *args: str, sandbox: bool = True, plugins: tuple[str, ...] = ()
    ) -> pytest.RunResult:
        pytester.makepyfile(source)
        options = [arg for name in ("sandbox", *plugins) for arg in ("-p", name)]
        return pytester.runpytest_subprocess(
            *options, *(["--sandbox"] if sandbox else []), *args, timeout=120
        )

    return run


@pytest.fixture
def reports(pytester: pytest.Pytester) -> Reports:
    """Return a function that returns the reports of a run, as a conftest file of it has got them.

    Request this before the run.
    """
    pytester.makeconftest(
        """
        import json

        def pytest_runtest_logreport(report):
            found = {
                "test": report.nodeid.split("::")[-1],
                "when": report.when,
                "outcome": report.outcome,
                "text": report.longreprtext,
                "duration": report.duration,
                "start": report.start,
                "stop": report.stop,
                "sections": [list(section) for section in report.sections],
                "properties": dict(report.user_properties),
            }
            with open("reports.jsonl", "a") as file:
                file.write(json.dumps(found) + "\\n")
        """
    )
    return lambda: [
        json.loads(line) for line in (pytester.path / "reports.jsonl").read_text().splitlines()
    ]


@pytest.fixture
def failed_report(reports: Reports) -> Callable[[], dict[str, Any]]:
    """Return a function that returns the only failed report of a run, with the texts of its
    sections by title.
    """

    def failed_report() -> dict[str, Any]:
        (report,) = [one for one in reports() if one["outcome"] == "failed"]
        sections: dict[str, str] = defaultdict(str)
        for title, text in report["sections"]:
            sections[title] += text
        return {**report, "sections": sections}

    return failed_report


@pytest.fixture(scope="session")
def install_apart(tmp_path_factory):
    """Return a function that installs packages where only the sessions of this test find them: one
    that is installed changes every session, or has the same options as another one.
    """

    def install(*packages):
        directory = tmp_path_factory.mktemp("packages")
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target"]
        subprocess.run([*command, directory, *packages], check=True, timeout=280)
        return str(directory)

    return install
