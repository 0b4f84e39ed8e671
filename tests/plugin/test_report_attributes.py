"""Attributes that plugins add to reports: they keep their types, or fail the test by name."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.needs("root")

CONFTEST = """
import pytest

VALUES = [
    None, True, 1 << 70, 2.5, float("inf"), 3j, b"bytes", "text \\u00e9", [1, [2]], (1, (2,)),
    {1, 2}, frozenset({(1, "a")}), {1: "one", (2, 3): {4}, None: b"", True: ()}, {}, (), set(),
]

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call":
        report.data = VALUES
        report.user_properties.append(("data", VALUES))
        if item.name in ("test_object", "test_failed_object"):
            report.later = {"nested": [object()]}
    return report

def pytest_runtest_logreport(report):
    if report.when == "call" and hasattr(report, "data"):
        assert repr(VALUES) == repr(report.data)
        (found,) = [value for name, value in report.user_properties if name == "data"]
        assert repr(VALUES) == repr(found)
        print("SAME", report.nodeid)
"""


def test_attributes_keep_their_types(run, pytester):
    """Values that execnet can send are the same in pytest's own process, nested ones too."""
    pytester.makeconftest(CONFTEST)
    result = run("def test_a(): pass\ndef test_b(): assert 0", "-s")
    result.assert_outcomes(passed=1, failed=1)
    assert 2 == result.stdout.str().count("SAME")


def test_an_attribute_that_is_not_data_fails_its_test(run, pytester):
    """The failure names the attribute and the type of its value; a failure of the test stays."""
    pytester.makeconftest(CONFTEST)
    result = run(
        "def test_object(): pass\ndef test_failed_object(): assert 1 == 2\ndef test_after(): pass",
    )
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "the attribute 'later' of the test's report * a value of builtins.object cannot *",
            "*assert 1 == 2",
            "*invalid attribute*",
            "the attribute 'later' of the test's report * a value of builtins.object cannot *",
        ]
    )


def test_private_attributes_reach_the_parent(run, pytester):
    """Those that are data have the values from inside, and others those of the hooks in pytest's
    own process; what Hypothesis would write to a file is left out.
    """
    pytester.makeconftest("""
import os
import pytest

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    report._rows = {"when": call.when, "parent": os.getppid(), 1: (2,)}
    report._item = item
    report._lock = type("Local", (), {})()
    if os.getppid() == 0:
        report._hypothesis_failing_examples = ["text"]
    return report

def pytest_runtest_logreport(report):
    assert {"when": report.when, "parent": 0, 1: (2,)} == report._rows
    assert report._item.nodeid == report.nodeid and report._lock
    assert not hasattr(report, "_hypothesis_failing_examples")
    print("PRIVATE", report.when)
""")
    result = run("def test_a(): pass\ndef test_b(): assert 0", "-s")
    result.assert_outcomes(passed=1, failed=1)
    assert 6 == result.stdout.str().count("PRIVATE")


def test_testmon_runs_the_tests_that_a_change_affects(run, pytester):
    """pytest-testmon gets the lines of each test, and deselects tests whose code is unchanged."""
    pytest.importorskip("testmon")
    pytester.makepyfile(shop="def one():\n    return 1\n", bank="def two():\n    return 2\n")
    source = """
    def test_shop():
        import shop
        assert 1 == shop.one()
    def test_bank():
        import bank
        assert 2 == bank.two()
    """
    options = ("--testmon",)
    plugins = ("testmon.pytest_testmon",)
    run(source, *options, plugins=plugins).assert_outcomes(passed=2)
    run(source, *options, plugins=plugins).assert_outcomes()
    (pytester.path / "bank.py").write_text("def two():\n    return 1 + 2\n")
    result = run(source, *options, plugins=plugins)
    assert 1 == result.parseoutcomes()["failed"]
    assert "passed" not in result.parseoutcomes()
