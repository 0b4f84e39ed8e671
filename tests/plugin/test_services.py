"""Services as fixtures: of each scope, for tests inside and outside, and with xdist."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.needs("root", "bridge")

SUITE = """
import os, sys, urllib.request
import pytest
from pytest_sandbox.services import Http, Service

WEB = [sys.executable, "-u", "-m", "http.server", "8000"]
app = Service(WEB, ready=Http("/", port=8000), name="web", workdir="/etc")
each = app.fixture()
shared = app.fixture(scope="session")

def get(url):
    with urllib.request.urlopen(url + "/passwd", timeout=30) as answer:
        assert b"root" in answer.read()

@pytest.fixture
def client(each):
    return each.url

def check(each, shared, client):
    assert each.url != shared.url
    assert client == each.url
    get(each.url)
    get(shared.url)
    print("SHARED", shared.container.id, "EACH", each.container.id)

@pytest.mark.parametrize("number", range(3))
def test_inside(each, shared, client, number):
    assert os.getpid() < 100
    check(each, shared, client)

@pytest.mark.no_sandbox
@pytest.mark.parametrize("number", range(2))
def test_outside(each, shared, client, number):
    check(each, shared, client)
"""


def printed(result, word):
    return [
        line.split()[line.split().index(word) + 1]
        for line in result.outlines
        if line.startswith("SHARED")
    ]


@pytest.mark.parametrize(
    ("options", "plugins", "workers"),
    [((), (), 1), (("-n", "2"), ("xdist",), 2), (("--sandbox-jobs=2",), (), 1)],
    ids=["alone", "xdist", "jobs"],
)
def test_fixtures_of_both_scopes_reach_the_service(run, options, plugins, workers):
    """A session's service starts once for each worker, a function's for each test."""
    result = run(SUITE, "-rP", *options, plugins=plugins)
    result.assert_outcomes(passed=5)
    assert 5 == len(set(printed(result, "EACH")))
    assert 1 <= len(set(printed(result, "SHARED"))) <= workers


def test_a_failed_test_shows_the_log(run):
    """Its report has the section, inside and outside; that of a passed test has none."""
    failing = "\n\ndef test_fails(each):\n    get(each.url)\n    assert 0\n"
    outside = failing.replace(
        "\ndef test_fails", "\n@pytest.mark.no_sandbox\ndef test_fails_outside"
    )
    result = run(SUITE + failing + outside, "-k", "fails or number", "-rP")
    result.assert_outcomes(failed=2)
    assert 2 == sum("- service web -" in line for line in result.outlines)
    assert 2 <= sum("GET /passwd" in line for line in result.outlines)


def test_a_service_that_does_not_start_is_an_error_of_the_test(run):
    """The report has the reason; the next test runs."""
    result = run("""
from pytest_sandbox.services import Port, Service
broken = Service(["sh", "-c", "echo why; exit 7"], ready=Port(1), name="broken").fixture()
def test_with(broken): pass
def test_without(): pass
""")
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(["*broken is not ready: it ended with exit status 7*"])


def test_a_service_of_function_scope_has_to_be_named(run):
    """getfixturevalue() in a test inside says so."""
    result = run("""
from pytest_sandbox.services import Port, Service
late = Service(["sleep", "60"], name="late").fixture()
def test_late(request):
    request.getfixturevalue("late")
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*the service 'late' was not started*by getfixturevalue()*"])


KINDS = """
import pytest
from pytest_sandbox.services import Port, Service
import sys, urllib.request

WEB = [sys.executable, "-u", "-m", "http.server", "8000"]
made = Service(WEB, ready=Port(8000), name="web", workdir="/etc").fixture(scope="{scope}")
seen = open("/dev/null")

def use(made):
    with urllib.request.urlopen(made.url.replace("tcp", "http") + "/passwd", timeout=30) as answer:
        assert b"root" in answer.read()
    print("USES", made.container.id, made.port)

def test_first(): pass
def test_uses(made): use(made)
class TestThem:
    def test_again(self, made): use(made)
    def test_once_more(self, made): use(made)
def test_last(made): use(made)
"""


@pytest.mark.parametrize(
    ("scope", "options", "services"),
    [
        ("function", ["--sandbox-scope=module"], 4),
        ("class", ["--sandbox-scope=module"], 3),
        ("module", ["--sandbox-scope=module"], 1),
        ("session", ["--sandbox-scope=module"], 1),
        ("function", ["--sandbox-scope=session"], 4),
        ("session", ["--sandbox-scope=session"], 1),
        ("function", ["--sandbox-fresh"], 4),
        ("session", ["--sandbox-fresh"], 4),
        ("function", ["--sandbox-fresh", "--sandbox-scope=module"], 4),
        ("class", ["--sandbox-fresh", "--sandbox-scope=module"], 3),
        ("session", ["--sandbox-fresh", "--sandbox-scope=module"], 1),
        ("function", ["--sandbox-jobs=3"], 4),
        ("function", ["--sandbox-jobs=3", "--sandbox-scope=class"], 4),
    ],
)
def test_a_service_lives_as_long_as_its_fixture(run, scope, options, services):
    """Whatever the test processes share: each test reaches the service, of which there are as many
    as there are fixtures.
    """
    result = run(KINDS.format(scope=scope), *options, "-rP")
    result.assert_outcomes(passed=5)
    used = [line.split()[1] for line in result.outlines if line.startswith("USES")]
    assert 4 == len(used)
    assert services == len(set(used))
