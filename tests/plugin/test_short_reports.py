"""A phase that has passed is reported by its times alone, and nothing of its report is lost."""

from __future__ import annotations

import json

import pytest

from pytest_sandbox.plugin.message_checker import MessageChecker
from pytest_sandbox.plugin.schema import InvalidError

pytestmark = pytest.mark.needs("root")

CONFTEST = """
import json, pytest
from pytest_sandbox.plugin import report_channel

@pytest.hookimpl(tryfirst=True)
def pytest_sandbox_outcome(item):
    with open("kinds.jsonl", "a") as file:
        file.write(json.dumps([item.name, RAW.copy()]) + "\\n")
    RAW.clear()

RAW = []
read = report_channel.Receiver._read_line
def read_and_note(self, line):
    if line:
        RAW.append(json.loads(line.partition(b" ")[2])[0])
    read(self, line)
report_channel.Receiver._read_line = read_and_note

def pytest_runtest_logreport(report):
    public = {name: value for name, value in vars(report).items() if name[0] not in "_$"}
    fields = {name: repr(value) for name, value in sorted(public.items())}
    for name in ("start", "stop", "duration"):
        fields.pop(name)
    fields["properties"] = [one for one in report.user_properties if "container" not in one[0]]
    fields.pop("user_properties")
    fields["type"] = type(report).__name__
    with open("fields.jsonl", "a") as file:
        file.write(json.dumps([report.nodeid, report.when, fields]) + "\\n")
"""
SOURCE = """
import pytest

@pytest.fixture
def marks(request): request.node.add_marker("added_later")

def test_plain(): pass
def test_prints(): print("text")
def test_property(record_property): record_property("a", 1)
def test_marked(marks): pass
@pytest.mark.parametrize("number", [1, 2.5])
@pytest.mark.filterwarnings("ignore")
class TestClass:
    def test_parameter(self, number): pass
@pytest.mark.xfail
def test_xpasses(): pass
"""


@pytest.mark.parametrize("scope", ["function", "module"])
def test_reports_are_those_without_a_sandbox(run, pytester, scope):
    """All attributes of all reports are those of a plain run; the phases that have nothing of their
    own are reported shortly.
    """
    pytester.makeconftest(CONFTEST)
    found = []
    for sandbox in (False, True):
        run(SOURCE, f"--sandbox-scope={scope}", sandbox=sandbox)
        path = pytester.path / "fields.jsonl"
        found.append([json.loads(line) for line in path.read_text().splitlines()])
        path.unlink()
    assert found[0] == found[1]
    lines = (pytester.path / "kinds.jsonl").read_text().splitlines()
    kinds = {
        name: [one for one in raw if one in {"passed", "report"}]
        for name, raw in map(json.loads, lines)
    }
    short, long = "passed", "report"
    assert {
        "test_plain": [short, short, short],
        "test_prints": [short, long, long],
        "test_property": [short, long, long],
        "test_marked": [long, long, long],
        "test_parameter[1]": [short, short, short],
        "test_parameter[2.5]": [short, short, short],
        "test_xpasses": [short, long, short],
    } == kinds


@pytest.mark.parametrize(
    "data",
    [
        ["call", 1.0, 2.0, 1.0],
        ["setup", 1.0, 2.0],
        ["setup", 1.0, "2", 1.0],
        ["setup", 1.0, 1e300, 1.0],
        ["collect", 1.0, 2.0, 1.0],
        {"when": "setup"},
    ],
)
def test_an_invalid_short_report_is_rejected(request, data):
    """A short report is checked as any other: its types, and the order of the phases."""
    with pytest.raises(InvalidError):
        MessageChecker(request.node).read(json.dumps(["passed", data]).encode())
