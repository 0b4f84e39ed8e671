"""More plugins, installed from PyPI: the outcomes and the output of a run inside are those of a run
outside.
"""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.needs("root")

# Packages, plugins, options, source, and a line of the output.
CASES = {
    "repeat": (
        ["pytest-repeat"],
        ["pytest_repeat"],
        ["--count=3"],
        "def test(): pass",
        "*3 passed*",
    ),
    "order": (
        ["pytest-order"],
        ["pytest_order.plugin"],
        ["-v"],
        """
        import pytest
        @pytest.mark.order(2)
        def test_second(): pass
        @pytest.mark.order(1)
        def test_first(): pass
        """,
        "*::test_first PASSED*50%*",
    ),
    "env": (
        ["pytest-env", "python-dotenv"],
        ["pytest_env.plugin"],
        ["-o", "env=FROM_PLUGIN=value"],
        "import os\ndef test(): assert 'value' == os.environ['FROM_PLUGIN']",
        "*1 passed*",
    ),
    "check": (
        ["pytest-check"],
        ["pytest_check.plugin"],
        [],
        "from pytest_check import check\ndef test():\n    check.equal(1, 2)\n    check.equal(3, 4)",
        "*Failed Checks: 2*",
    ),
    "instafail": (
        ["pytest-instafail"],
        ["pytest_instafail"],
        ["--instafail"],
        "def test_a(): assert 0\ndef test_b(): pass",
        "*1 failed, 1 passed*",
    ),
    "clarity": (
        ["pytest-clarity", "pprintpp"],
        ["pytest_clarity.plugin"],
        ["-vv"],
        "def test(): assert {'a': 1} == {'a': 2}",
        "*pytest-clarity diff shown*",
    ),
    "icdiff": (
        ["pytest-icdiff", "icdiff", "pprintpp"],
        ["pytest_icdiff"],
        [],
        "def test(): assert {'a': 1} == {'a': 2}",
        "*equals failed*",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_plugin_works_inside_as_outside(run, install_apart, monkeypatch, case):
    """The outcomes are those of a run outside, and the plugin's line is printed."""
    packages, plugins, options, source, line = CASES[case]
    monkeypatch.setenv("PYTHONPATH", install_apart(*packages))
    outside, inside = (
        run(source, *options, sandbox=sandbox, plugins=tuple(plugins)) for sandbox in (False, True)
    )
    outside.stdout.fnmatch_lines([line])
    inside.stdout.fnmatch_lines([line])
    assert outside.parseoutcomes() == inside.parseoutcomes()


SOURCE = """
import pytest
def test_passes(record_property): record_property("key", "value")
def test_fails():
    print("output")
    assert 0
@pytest.mark.skip(reason="why")
def test_skipped(): pass
"""


def test_reportlog_has_the_reports(run, pytester, install_apart, monkeypatch):
    """pytest-reportlog's file has each report of a run outside."""
    monkeypatch.setenv("PYTHONPATH", install_apart("pytest-reportlog"))
    found = []
    for sandbox in (False, True):
        path = pytester.path / f"{sandbox}.jsonl"
        run(SOURCE, f"--report-log={path}", sandbox=sandbox, plugins=("pytest_reportlog.plugin",))
        lines = map(json.loads, path.read_text().splitlines())
        reports = [line for line in lines if line["$report_type"] == "TestReport"]
        found.append([(one["nodeid"], one["when"], one["outcome"]) for one in reports])
    assert 8 == len(found[0])
    assert found[0] == found[1]


def test_json_report_has_the_results(run, pytester, install_apart, monkeypatch):
    """pytest-json-report's file has the tests, phases and output of a run outside."""
    monkeypatch.setenv("PYTHONPATH", install_apart("pytest-json-report"))
    found = []
    for sandbox in (False, True):
        path = pytester.path / f"{sandbox}.json"
        options = ("--json-report", f"--json-report-file={path}")
        run(SOURCE, *options, sandbox=sandbox, plugins=("metadata", "pytest_jsonreport.plugin"))
        tests = json.loads(path.read_text())["tests"]
        found.append([(one["nodeid"], one["outcome"], phases(one)) for one in tests])
    assert ["passed", "failed", "skipped"] == [outcome for _test, outcome, _phases in found[0]]
    assert found[0] == found[1]


def phases(test):
    """Return name, outcome and output of the phases of a test in pytest-json-report's file."""
    names = [name for name in ("setup", "call", "teardown") if name in test]
    return [(name, test[name]["outcome"], test[name].get("stdout")) for name in names]
