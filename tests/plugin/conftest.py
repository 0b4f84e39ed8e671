"""Runs of pytest in a process of its own, with this plugin and those that a test names, and no
other.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that writes a test file and runs it, sandboxed unless ``sandbox=False``."""
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
        chosen = [word for name in ("sandbox", *plugins) for word in ("-p", name)]
        return pytester.runpytest_subprocess(
            *chosen, *(["--sandbox"] if sandbox else []), *args, timeout=120
        )

    return run


@pytest.fixture
def reports(pytester: pytest.Pytester) -> Callable[[], list[dict[str, object]]]:
    """Return a function that returns what each report said, as a conftest file of the run saw it;
    ask for it before the run.
    """
    pytester.makeconftest(
        """
        import json

        def pytest_runtest_logreport(report):
            said = {
                "test": report.nodeid.split("::")[-1], "when": report.when, "outcome": report.outcome, "text": report.longreprtext,
                "duration": report.duration, "sections": [list(section) for section in report.sections],
                "properties": dict(report.user_properties), "expected": hasattr(report, "wasxfail"),
            }
            with open("reports.jsonl", "a") as file:
                file.write(json.dumps(said) + "\\n")
        """
    )
    return lambda: [
        json.loads(line) for line in (pytester.path / "reports.jsonl").read_text().splitlines()
    ]
