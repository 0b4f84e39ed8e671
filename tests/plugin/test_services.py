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
    result.stdout.fnmatch_lines(["*cannot start inside a container*"])


@pytest.mark.parametrize("configuration", ["error", "skip"])
@pytest.mark.parametrize(
    ("scope", "options", "refused"),
    [
        ("function", ["--sandbox-scope=module"], True),
        ("module", ["--sandbox-scope=module"], True),
        ("session", ["--sandbox-scope=module"], False),
        ("session", ["--sandbox-fresh"], True),
    ],
)
def test_a_service_that_would_start_inside_is_refused(run, scope, options, refused, configuration):
    """A service whose fixture is created inside fails with what to change, and is not skipped as a
    test that the host does not support.
    """
    source = f"""
    from pytest_sandbox.services import Service
    made = Service(["sleep", "100"], name="sleeper").fixture(scope="{scope}")

    def test_first(request): pass
    def test_uses(made): assert made.container.id
    def test_uses_too(made): assert made.container.id
    """
    result = run(source, *options, "-o", f"sandbox_unsupported={configuration}")
    if not refused:
        result.assert_outcomes(passed=3)
        return
    assert result.parseoutcomes()["errors"] >= 1
    assert "skipped" not in result.parseoutcomes()
    result.stdout.fnmatch_lines(["the service 'made' cannot start inside*a wider scope than*"])
    assert "(sandbox_unsupported = skip skips" not in result.stdout.str()
