"""What stays in pytest's process of each test is what pytest itself keeps: the reports."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.needs("root")

CONFTEST = """
import json, sys
import pytest

def sizes(items):
    return [sys.getsizeof(vars(item)) for item in items]

@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session):
    session.before = sizes(session.items)
    session.reports = []
    session.config.pluginmanager.register(Noted(session))

class Noted:
    def __init__(self, session):
        self.session = session

    def pytest_sandbox_discard(self, item):
        pass

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report):
        self.session.reports.append(report)

def pytest_sessionfinish(session):
    ids = {item.nodeid: getattr(item, "id", None) for item in session.items}
    plugins = session.config.pluginmanager
    found = {
        "before": session.before,
        "after": sizes(session.items),
        "reports": len(session.reports),
        "ids": [getattr(one, "id", None) is ids[one.nodeid] for one in session.reports],
        "rows": len(plugins.get_plugin("sandbox-summary")._rows),
    }
    with open("found.json", "w") as file:
        json.dump(found, file)
"""
SOURCE = """
import pytest, unittest

@pytest.mark.parametrize("number", range(5))
def test_number(number): pass

class TestCase(unittest.TestCase):
    def test_method(self): pass
"""


@pytest.mark.parametrize("options", [(), ("--sandbox-scope=module",)])
def test_an_item_is_not_larger_after_its_test(run, pytester, options):
    """The dictionaries of items keep the keys that they share."""
    found = run_and_read(run, pytester, *options)
    assert found["before"] == found["after"]


def test_reports_share_the_ids_of_their_items(run, pytester):
    """The ID of a report is the item's own object."""
    found = run_and_read(run, pytester)
    assert (18, [True] * 18) == (found["reports"], found["ids"])


@pytest.mark.parametrize(("options", "count"), [((), 0), (("--sandbox-stats",), 6)])
def test_usage_is_kept_only_for_the_table(run, pytester, options, count):
    """Without ``--sandbox-stats``, the summary remembers no test."""
    assert count == run_and_read(run, pytester, *options)["rows"]


def run_and_read(run, pytester, *options):
    """Run the suite, and return what it has found in pytest's process."""
    pytester.makeconftest(CONFTEST)
    run(SOURCE, "-p", "no:randomly", *options).assert_outcomes(passed=6)
    return json.loads((pytester.path / "found.json").read_text())
