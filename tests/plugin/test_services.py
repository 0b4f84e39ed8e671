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


OVERLAP = """
import time, pytest
from pytest_sandbox.services import Log, Service

SCRIPT = "echo $(date +%s.%N); sleep 0.3; echo $(date +%s.%N) up; exec sleep 100"
service = Service(["sh", "-c", SCRIPT], ready=Log("up"))
service.is_ahead = {is_ahead}
made = service.fixture()

@pytest.mark.parametrize("number", range(4))
def test_it(made, number):
    time.sleep(0.3)
    print("RUN", number, *made.logs().split()[:2], time.time())
"""


@pytest.mark.parametrize(
    ("is_ahead", "options"), [(True, []), (False, ["--sandbox-jobs=2"])], ids=["ahead", "jobs"]
)
def test_a_service_starts_while_an_earlier_test_runs(run, is_ahead, options):
    """With ``ahead``, and with several jobs, it starts before an earlier test ends. With several
    jobs, those of the tests that begin together start together.
    """
    result = run(OVERLAP.format(is_ahead=is_ahead), "-rP", *options)
    result.assert_outcomes(passed=4)
    lines = [line.split()[2:] for line in result.outlines if line.startswith("RUN")]
    begun, ready, ended = zip(*sorted(tuple(map(float, line)) for line in lines), strict=True)
    assert all(begun[number + 1] < ended[number] for number in range(3))
    if options:
        assert begun[1] < ready[0]
        assert begun[3] < ready[2]


def test_services_of_tests_that_do_not_run_are_ended(run):
    """One that was started in advance for a test which is skipped, or comes after ``-x``."""
    source = (
        OVERLAP.format(is_ahead=True)
        + """
@pytest.fixture(autouse=True)
def fails(number):
    if number == 1:
        pytest.fail("stop")
"""
    )
    result = run(source, "-x")
    assert {"passed": 1, "errors": 1} == result.parseoutcomes()


def test_a_later_service_that_does_not_start_is_an_error_of_its_test(run):
    """In a process that tests share, the tests before and after it run, with their services."""
    result = run(
        """
        from pytest_sandbox.services import Port, Service
        import socket, sys
        web = [sys.executable, "-u", "-m", "http.server", "8000"]
        kept = Service(web, ready=Port(8000)).fixture(scope="module")
        broken = Service(["sh", "-c", "exit 7"], ready=Port(1), name="broken").fixture()
        def connect(kept): socket.create_connection((kept.host, kept.port), 30).close()
        def test_first(kept): connect(kept)
        def test_broken(kept, broken): pass
        def test_last(kept): connect(kept)
        """,
        "--sandbox-scope=module",
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*broken is not ready: it ended with exit status 7*"])


def test_a_service_of_a_shared_process_says_what_it_cannot_do(run):
    """Its log until the test and its addresses are known; its container is outside."""
    run(
        """
        import pytest
        from pytest_sandbox import SandboxError
        from pytest_sandbox.services import Log, Service
        made = Service(["sh", "-c", "echo up; exec sleep 100"], ready=Log("up")).fixture()
        def test_first(): pass
        def test_later(made):
            assert "up\\n" == made.logs()
            assert made.container.ip_address == made.host
            for call in (made.stop, made.clone):
                with pytest.raises(SandboxError, match="belongs to the pytest process"):
                    call()
            with pytest.raises(SandboxError, match="container.run is not available"):
                made.container.run(["true"])
        """,
        "--sandbox-scope=module",
    ).assert_outcomes(passed=2)


@pytest.mark.parametrize(
    ("key", "said"), [("scop", "did you mean scope?*fresh"), ("memroy", "did you mean memory?*fr")]
)
def test_a_mark_names_the_keys_that_it_may_have(run, key, said):
    """Those of tests are among them."""
    result = run(
        f"import pytest\n@pytest.mark.container({key}='x')\ndef test(): pass", sandbox=False
    )
    result.stderr.fnmatch_lines([f"*{key}='x' is not valid*{said}*"])


def test_an_invalid_setting_in_a_fixture_shows_the_fixture_alone(run):
    """No line of this package is in the report."""
    result = run("""
import pytest
from pytest_sandbox import Container
@pytest.fixture
def box():
    return Container(memory="much")
def test(box): pass
""")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*test_*.py:5: SettingsError"])
    assert "settings.py" not in result.stdout.str()


NAMED = """
import sys, urllib.request
import pytest
from pytest_sandbox import Network
from pytest_sandbox.services import Http, Service

net, other = Network(), Network()
WEB = [sys.executable, "-u", "-m", "http.server", "8000"]
web = Service(WEB, ready=Http("/", port=8000), workdir="/etc", network=net, hostname="web")
one = web.fixture(scope="SCOPE")
elsewhere = Service(["sleep", "60"], network=other).fixture()

def get(url):
    with urllib.request.urlopen(url + "/passwd", timeout=10) as answer:
        assert b"root" in answer.read()

def test_of_the_network(one):
    get(one.url)
    get("http://web:8000")

@pytest.mark.container(network=net)
def test_of_two(one, elsewhere): get(one.url)

@pytest.mark.container(network=other)
def test_of_another(one):
    with pytest.raises(OSError): get(one.url)
"""


@pytest.mark.parametrize("scope", ["function", "session"])
def test_a_test_is_on_the_network_that_its_services_name(run, scope):
    """Without a network of its own, a test inside reaches services that name one; with another one
    it does not.
    """
    run(NAMED.replace("SCOPE", scope)).assert_outcomes(passed=3)
