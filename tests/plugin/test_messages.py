"""The check of messages from a test process: invalid and expensive ones are rejected."""

from __future__ import annotations

import base64
import copy
import json
import os
from array import array
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_sandbox.container import values
from pytest_sandbox.errors import SandboxError
from pytest_sandbox.plugin.message_checker import MessageChecker
from pytest_sandbox.plugin.schema import InvalidError, safe_text
from pytest_sandbox.printable import printable_output

#: Examples of the property test: 20,000 before a release.
EXAMPLES = int(os.environ.get("SANDBOX_HOSTILE_EXAMPLES", "300"))
NODEID = "test_it.py::test_it"
LOCATION = ["test_it.py", 3, "test_it"]
REPORT = {
    "nodeid": NODEID,
    "location": LOCATION,
    "keywords": {"test_it": 1},
    "outcome": "passed",
    "longrepr": None,
    "when": "setup",
    "user_properties": [["name", 3]],
    "sections": [["Captured stdout call", "text"]],
    "duration": 0.1,
    "start": 1.0,
    "stop": 1.1,
    "$report_type": "TestReport",
    "covered": ["dict", [1, ["set", "a", ["tuple", 1, None]]], ["x", ["bytes", "AA=="]]],
}
SUBTEST = {name: one for name, one in REPORT.items() if name != "$report_type"}
CRASH = {"path": "test_it.py", "lineno": 4, "message": "assert 0"}
TRACEBACK = {
    "reprentries": [
        {
            "type": "ReprEntry",
            "data": {
                "lines": ["    def test_it():", ">       assert 0"],
                "reprfuncargs": {"args": [["here", "1"]]},
                "reprlocals": {"lines": ["x = 1"]},
                "reprfileloc": CRASH,
                "style": "long",
            },
        },
        {"type": "ReprEntryNative", "data": {"lines": ["native"]}},
    ],
    "extraline": None,
    "style": "long",
}
LONGREPR = {
    "reprcrash": CRASH,
    "reprtraceback": TRACEBACK,
    "sections": [["title", "content", "-"]],
    "chain": [[TRACEBACK, CRASH, None]],
}
ERROR = values.encode_exception(ValueError("wrong", 3))
PHASE = {"report": REPORT, "error": None, "symptoms": [["missing", "/tmp/x"]]}
NUMBERS = base64.b64encode(array("i", [1, 2]).tobytes()).decode()
#: A valid message of each kind, and of each form of a report.
RECORDED = [
    ["report", PHASE],
    [
        "report",
        {**PHASE, "report": {**REPORT, "outcome": "failed", "longrepr": LONGREPR}, "error": ERROR},
    ],
    [
        "report",
        {**PHASE, "report": {**REPORT, "outcome": "skipped", "longrepr": ["test_it.py", 3, "no"]}},
    ],
    [
        "logged",
        {
            **SUBTEST,
            "_report_type": "SubTestReport",
            "_subtest.context": {"msg": "m", "kwargs": {"i": "1"}},
        },
    ],
    [
        "warning",
        {
            "message": values.encode_exception(UserWarning("old")),
            "filename": "test_it.py",
            "lineno": 3,
            "when": "runtest",
            "nodeid": NODEID,
            "location": ["test_it.py", 3, "test_it"],
        },
    ],
    ["debugger", True],
    ["cache", ["mine/key", {"a": [1, 2.5, None]}]],
    ["subtests", 1],
    ["session_stop", ["stop", False]],
    ["junit", [[["name", "value"]], {"classname": "it"}]],
    [
        "benchmark",
        {
            "facts": {
                "name": "test_it",
                "fullname": NODEID,
                "group": None,
                "param": None,
                "extra_info": {},
            },
            "options": {"min_rounds": 5, "disable_gc": False},
            "iterations": 1,
            "durations": base64.b64encode(array("d", [0.5, 0.25]).tobytes()).decode(),
            "has_error": False,
        },
    ],
    [
        "coverage",
        {"file": "/srv/it.py", "context": "", "tracer": "", "kind": "arcs", "numbers": NUMBERS},
    ],
    ["imported", [["encodings.idna", "stringprep"], {"numpy": 100}]],
    ["late_fixture", ["database", "session"]],
    ["passed", ["setup", 1.0, 1.1, 0.1]],
    ["exit", ["enough", 3]],
    ["internal", "Traceback"],
    ["done", [True, False]],
]


def checker(**options):
    config = SimpleNamespace(
        option=SimpleNamespace(**options), getoption=lambda _name, default=None: default
    )
    item = SimpleNamespace(
        nodeid=NODEID, location=tuple(LOCATION), keywords={"test_it": 1}, config=config
    )
    return MessageChecker(item)


def read(message, **options):
    return checker(**options).read(json.dumps(message).encode())


@pytest.mark.parametrize("message", RECORDED[:-1], ids=lambda message: message[0])
def test_a_valid_message_is_accepted(message):
    """A message of each kind, as a test process sends it, is accepted; a short report is what the
    whole one would be.
    """
    assert {"passed": "report"}.get(message[0], message[0]) == read(message)[0]


def report(**changed):
    """Return a "report" message with changed fields of the report."""
    return ["report", {"report": {**REPORT, **changed}, "error": None, "symptoms": []}]


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (report(nodeid="other.py::test"), "about another test"),
        (report(location=["other.py", 1, "test"]), "location of another test"),
        (report(when="call"), "out of order"),
        (report(when=None), "report.when"),
        (report(outcome="rerun"), "report.outcome"),
        (report(outcome="failed"), "longrepr"),
        (report(outcome="skipped", longrepr="text"), "longrepr"),
        (report(duration="x"), "duration"),
        (report(duration=float("nan")), "duration"),
        (report(sections=[["a", 5]]), "sections"),
        (report(toterminal="x"), "toterminal"),
        (report(node="x"), "node"),
        (report(wasxfail=5), "wasxfail"),
        (report(**{"$report_type": "CollectReport"}), "report_type"),
        (report(user_properties=[[["a"], 1]]), "user_properties"),
        (report(covered=["set", ["list"]]), "is not data"),
        (report(covered=["object", "x"]), "is not data"),
        (report(covered=["Decimal", "1e999999999"]), "is not data"),
        (["cache", ["/etc/passwd", 1]], "not a relative path"),
        (["cache", ["a/../../b", 1]], "not a relative path"),
        (["cache", ["cache/lastfailed", {}]], "pytest itself"),
        (["junit", [[], {'a="1"/><testcase b': "x"}]], "XML"),
        (["coverage", "eA=="], "must be an object"),
        (["nothing", 1], "unknown kind"),
        (["done", [True, False]], "without a report"),
        ("report", "not a pair"),
        (["internal", "x" * (5 << 20)], "larger than 4 MiB"),
        (["exit", ["x", 256]], "between"),
    ],
)  # fmt: skip
def test_an_invalid_message_is_rejected(message, problem):
    """The error for an invalid message names the problem."""
    with pytest.raises(InvalidError, match=problem):
        read(message)


def test_a_long_integer_is_rejected():
    """An integer of thousands of digits, which takes quadratic time to read, is rejected."""
    with pytest.raises(InvalidError, match="digits"):
        checker().read(b'["subtests", ' + b"1" * 5000 + b"]")


def test_deep_nesting_is_rejected():
    """Deeply nested values are rejected."""
    with pytest.raises(InvalidError):
        checker().read(b'["internal", ' + b"[" * 100_000)
    with pytest.raises(InvalidError, match="nested"):
        read(["cache", ["key", json.loads("[" * 150 + "]" * 150)]])


def test_all_messages_together_are_limited():
    """Many valid messages are rejected before they fill the parent's memory."""
    found = checker()
    line = json.dumps(["internal", "x" * (1 << 20)]).encode()
    for _ in range(20):
        found.read(line)
    with pytest.raises(InvalidError, match="24 MiB"):
        _ = [found.read(line) for _ in range(10)]


def test_junit_xml_requires_pairs():
    """A user property that is not a pair is rejected with ``--junitxml``, and accepted without."""
    triple = report(user_properties=[[1, 2, 3]])
    assert [(1, 2, 3)] == read(triple)[1]["report"]["user_properties"]
    with pytest.raises(InvalidError, match="not a pair"):
        read(triple, xmlpath="x.xml")


def test_properties_of_the_container_are_removed():
    """User properties ``container.*``, which only the parent sets, are removed."""
    forged = report(user_properties=[["container.kept", "x; reboot"], ["mine", 1]])
    assert [("mine", 1)] == read(forged)[1]["report"]["user_properties"]


def test_attributes_that_the_parent_would_act_on_are_removed():
    """Private attributes are accepted, but for special names of Python, and Hypothesis' examples,
    which it would write to a file.
    """
    names = ("_rows", "__class__", "__dict__", "_hypothesis_failing_examples")
    accepted = read(report(**dict.fromkeys(names, 3)))[1]["report"]
    assert ["_rows"] == [name for name in names if name in accepted]
    with pytest.raises(InvalidError, match="_to_json"):
        read(report(_to_json=3))


def test_control_characters_are_shown_escaped():
    """Control characters are escaped; captured output keeps its colours."""
    assert "\\x1b]0;x\\x07\\x9b\\u202e\\ud800\n\t" == safe_text("\x1b]0;x\x07\x9b\u202e\ud800\n\t")
    assert "\x1b[31mred\\x1b[2J\x1b[0m" == printable_output("\x1b[31mred\x1b[2J")


@pytest.mark.parametrize(
    "data",
    [
        ["Fraction", "1e30000000"],
        ["Decimal", "1e999999999"],
        ["Decimal", "1" * 5000],
        ["Fraction", "1/" + "3" * 5000],
    ],
)
def test_a_huge_number_is_refused(data):
    """A number with a short text that would take long to create is rejected."""
    with pytest.raises(SandboxError):
        values.decode(data)


def test_integers_with_equal_hashes_are_rejected():
    """A set of integers with equal hashes, which takes quadratic time to create, is rejected."""
    with pytest.raises(SandboxError, match="one hash"):
        values.decode(["set", *(number * (2**61 - 1) for number in range(1, 200))])


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        [
            "",
            "..",
            "/etc",
            "\x1b[2J",
            "\ud800",
            "failed",
            "setup",
            NODEID,
            "node",
            "1e30000000",
            "Fraction",
        ]
    ),
)
HOSTILE = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


def places(value, path=()):
    """Yield the path of keys and indices to each value in a message."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def replaced(message, path, value):
    """Return a copy of a message with the value at a path replaced."""
    if not path:
        return value
    made = copy.deepcopy(message)
    inner = made
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return made


@st.composite
def mutated(draw):
    """Return a valid message with one value replaced by a hostile one."""
    message = draw(st.sampled_from(RECORDED))
    kind = message[0]
    if draw(st.booleans()):
        return [kind, draw(HOSTILE)]
    return replaced(message, draw(st.sampled_from(list(places(message)))), draw(HOSTILE))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(mutated(), min_size=1, max_size=3))
def test_hostile_messages_are_accepted_whole_or_refused(sent):
    """Any message is either rejected with its problem, or safe for what the parent does with it."""
    found = checker(xmlpath="x.xml")
    for message in sent:
        line = json.dumps(message).encode("utf-8", "surrogatepass")
        try:
            kind, data = found.read(line)
        except InvalidError as error:
            assert error.problem  # noqa: PT017 - most examples raise nothing
            continue
        _use(kind, data)


def _use(kind, data):
    """Do with an accepted message what the parent does."""
    if kind in {"report", "logged"}:
        _use_report(data["report"] if kind == "report" else data)
    if kind == "cache":
        assert not data[0].startswith("/")
        assert ".." not in data[0].split("/")
        json.dumps(data[1], ensure_ascii=False).encode()
    if kind == "warning":
        assert isinstance(data["message"], Warning)
        str(data["message"])
    if kind == "report" and data["error"] is not None:
        assert isinstance(data["error"], BaseException)


def _use_report(data):
    assert NODEID == data["nodeid"]
    made = pytest.TestReport._from_json(copy.deepcopy(data))
    assert "\x1b" not in made.longreprtext
    assert made.outcome in {"passed", "failed", "skipped"}
    assert all(len(one) == 2 for one in made.user_properties)
    made.head_line, made.caplog, made.capstdout  # noqa: B018 - each reads the report


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.binary(max_size=200))
def test_hostile_bytes_are_rejected(line):
    """Bytes that are not a message are rejected."""
    with pytest.raises(InvalidError):
        checker().read(line)
