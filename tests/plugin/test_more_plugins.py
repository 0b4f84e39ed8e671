"""More plugins, installed from PyPI: the outcomes and the output of a run inside are those of a run
outside.
"""

from __future__ import annotations

import json
import os
import pathlib
import re

import pytest
from filelock import FileLock

pytestmark = pytest.mark.needs("root")

#: Plugins that do not affect each other, and so run in one session.
TOGETHER = (
    *("dotenv", "check", "unordered", "dependency", "subprocess", "lazy-fixtures"),
    *("freezer", "trio", "requests-mock", "httpx", "respx"),
)
# Plugins, options, source, and a line of the output.
CASES = {
    "repeat": (["pytest_repeat"], ["--count=3"], "def test(): pass", "*3 passed*"),
    "order": (
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
    "ordering": (
        ["pytest_ordering"],
        ["-v"],
        """
        import pytest
        @pytest.mark.run(order=2)
        def test_second(): pass
        @pytest.mark.run(order=1)
        def test_first(): pass
        """,
        "*::test_first PASSED*50%*",
    ),
    "env": (
        ["pytest_env.plugin"],
        ["-o", "env=FROM_PLUGIN=value"],
        "import os\ndef test(): assert 'value' == os.environ['FROM_PLUGIN']",
        "*1 passed*",
    ),
    "dotenv": (
        ["pytest_dotenv.plugin"],
        ["--envfile=x.env"],
        "import os\ndef test(): assert 'value' == os.environ['FROM_FILE']",
        "PASSED test_dotenv.py::test",
    ),
    "check": (
        ["pytest_check.plugin"],
        [],
        "from pytest_check import check\ndef test():\n    check.equal(1, 2)\n    check.equal(3, 4)",
        "*Failed Checks: 2*",
    ),
    "instafail": (
        ["pytest_instafail"],
        ["--instafail"],
        "def test_a(): assert 0\ndef test_b(): pass",
        "*1 failed, 1 passed*",
    ),
    "clarity": (
        ["pytest_clarity.plugin"],
        ["-vv"],
        "def test(): assert {'a': 1} == {'a': 2}",
        "*pytest-clarity diff shown*",
    ),
    "icdiff": (
        ["pytest_icdiff"],
        [],
        "def test(): assert {'a': 1} == {'a': 2}",
        "*equals failed*",
    ),
    "unordered": (
        ["pytest_unordered"],
        [],
        """
        from pytest_unordered import unordered
        def test_a(): assert [1, 2] == unordered([2, 1])
        def test_b(): assert [1, 2] == unordered([2, 3])
        """,
        "E* One item replaced:",
    ),
    "sugar": (
        ["pytest_sugar"],
        ["--force-sugar"],
        "def test_a(): pass\ndef test_b(): assert 0",
        " test_* \u2a2f *100%*",
    ),
    "pretty": (
        ["pytest_pretty"],
        [],
        "def test_a(): pass\ndef test_b(): assert 0",
        "*Summary of Failures*",
    ),
    "dependency": (
        ["pytest_dependency"],
        [],
        """
        import pytest
        @pytest.mark.dependency()
        def test_good(): pass
        @pytest.mark.dependency()
        def test_bad(): assert 0
        @pytest.mark.dependency(depends=["test_good"])
        def test_runs(): pass
        @pytest.mark.dependency(depends=["test_bad"])
        def test_does_not(): pass
        """,
        "SKIPPED*test_does_not depends on test_bad",
    ),
    "split": (
        ["pytest_split.plugin"],
        # One group: with two, the durations that the first run has stored choose the tests.
        ["--splits=1", "--group=1", "--store-durations"],
        "def test_a(): pass\ndef test_b(): pass\ndef test_c(): assert 0",
        "*Stored test durations*",
    ),
    "custom-exit-code": (
        ["pytest_custom_exit_code"],
        ["--suppress-tests-failed-exit-code"],
        "def test(): assert 0",
        "*1 failed*",
    ),
    "subprocess": (
        ["pytest_subprocess.fixtures"],
        [],
        """
        import subprocess
        def test_registered(fp):
            fp.register(["git", "status"], stdout="clean")
            done = subprocess.run(["git", "status"], capture_output=True, text=True)
            assert "clean" == done.stdout.strip()
        def test_other(fp): subprocess.run(["git", "push"])
        """,
        "E *ProcessNotRegisteredError*",
    ),
    "remotedata": (
        ["pytest_remotedata.plugin"],
        ["--remote-data=none", "-rs"],
        """
        import pytest, socket
        def test_blocked():
            with pytest.raises(OSError, match="attempted to connect to the internet"):
                socket.create_connection(("192.0.2.1", 80))
        @pytest.mark.remote_data
        def test_remote(): pass
        """,
        "SKIPPED*need --remote-data option to run",
    ),
    "lazy-fixtures": (
        ["pytest_lazy_fixtures.plugin"],
        [],
        """
        import pytest
        from pytest_lazy_fixtures import lf
        @pytest.fixture
        def one(): return 1
        @pytest.mark.parametrize("n", [lf("one"), 2])
        def test(n): assert n == 1
        """,
        "FAILED test_lazy_fixtures.py::test[[]2] *",
    ),
    "doctestplus": (
        ["pytest_doctestplus.plugin"],
        ["--doctest-plus", "--doctest-modules"],
        '''
        def test(): pass
        def about():
            """
            >>> 1.0000001 # doctest: +FLOAT_CMP
            1.0
            """
        def wrong():
            """
            >>> 2
            3
            """
        ''',
        "*1 failed, 2 passed*",
    ),
    "freezer": (
        ["pytest_freezer"],
        [],
        """
        import datetime, pytest
        @pytest.mark.freeze_time("2020-01-01")
        def test_mark(): assert datetime.date(2020, 1, 1) == datetime.date.today()
        def test_fixture(freezer):
            freezer.move_to("2021-01-01")
            assert 2020 == datetime.date.today().year
        """,
        "E *assert 2020 == 2021",
    ),
    "trio": (
        ["pytest_trio.plugin"],
        [],
        """
        import pytest, trio
        @pytest.fixture
        async def value():
            await trio.sleep(0)
            yield 1
        @pytest.mark.trio
        async def test_a(value, nursery):
            nursery.start_soon(trio.sleep, 0)
            assert 1 == value
        @pytest.mark.trio
        async def test_b(): assert 0
        """,
        "FAILED test_trio.py::test_b *",
    ),
    "requests-mock": (
        ["requests_mock.contrib._pytest_plugin"],
        [],
        """
        import requests
        def test_a(requests_mock):
            requests_mock.get("http://example.org/x", text="text")
            assert "text" == requests.get("http://example.org/x").text
        def test_b(requests_mock): requests.get("http://example.org/y")
        """,
        "E *NoMockAddress: No mock address: GET http://example.org/y",
    ),
    "httpx": (
        ["pytest_httpx"],
        [],
        """
        import httpx
        def test_a(httpx_mock):
            httpx_mock.add_response(text="text")
            assert "text" == httpx.get("https://example.org/").text
        def test_b(httpx_mock): httpx_mock.add_response()
        """,
        "E *The following responses are mocked but not requested:*",
    ),
    "respx": (
        ["respx.plugin"],
        [],
        """
        import httpx
        def test_a(respx_mock):
            respx_mock.get("https://example.org/").respond(204)
            assert 204 == httpx.get("https://example.org/").status_code
        def test_b(respx_mock): httpx.get("https://example.org/")
        """,
        "*AllMockedAssertionError: RESPX: *",
    ),
}
#: With what they need, all of them in Python alone: --no-deps installs nothing else.
PACKAGES = (
    *(f"pytest-{name}" for name in CASES if name not in {"requests-mock", "respx"}),
    *(
        "requests-mock",
        "respx",
        "pprintpp",
        "icdiff",
        "python-dotenv",
        "httpx",
        "httpcore",
        "h11",
        "certifi",
    ),
    *(
        "idna",
        "requests",
        "charset-normalizer",
        "urllib3",
        "six",
        "termcolor",
        "decopatch",
        "makefun",
    ),
    *("pytest-csv", "pytest-durations", "pytest-harvest", "pytest-httpserver"),
    *("pytest-json-report", "pytest-reportlog"),
)


@pytest.fixture
def more_plugins(more_packages, monkeypatch):
    """Let the sessions of this test find the plugins."""
    monkeypatch.setenv("PYTHONPATH", more_packages)


@pytest.fixture(scope="module")
def more_packages(install_apart, tmp_path_factory):
    """Install all of them at once, for all workers of xdist; return the directory."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    done = shared / "more-packages"
    with FileLock(f"{done}.lock", timeout=280):
        if not done.exists():
            done.write_text(install_apart(*PACKAGES))
    return done.read_text()


def counts(result):
    """Return how many tests have which outcome, as the last lines say in whatever format."""
    found = re.findall(r"(\d+) (passed|failed|errors?|skipped|deselected)", result.stdout.str())
    return sorted(set(found))


@pytest.mark.parametrize("case", [name for name in CASES if name not in TOGETHER])
def test_a_plugin_works_inside_as_outside(run, more_plugins, case):
    """The outcomes are those of a run outside, and the plugin's line is printed."""
    plugins, options, source, line = CASES[case]
    outside, inside = (
        run(source, *options, sandbox=sandbox, plugins=tuple(plugins)) for sandbox in (False, True)
    )
    outside.stdout.fnmatch_lines([line])
    inside.stdout.fnmatch_lines([line])
    assert counts(outside)
    assert (outside.ret, counts(outside)) == (inside.ret, counts(inside))


def test_plugins_work_together_inside_as_outside(run, pytester, more_plugins):
    """Each test has the outcome of a run outside, and each plugin's line is printed."""
    pytester.makefile(".env", x="FROM_FILE=value")
    plugins, options, lines = [], ["-rA"], []
    for name in TOGETHER:
        of_case, its_options, source, line = CASES[name]
        plugins += of_case
        options += its_options
        lines.append(line)
        pytester.makepyfile(**{f"test_{name.replace('-', '_')}": source})
    outside, inside = (
        run("def test(): pass", *options, sandbox=sandbox, plugins=tuple(plugins))
        for sandbox in (False, True)
    )
    for result in (outside, inside):
        for line in lines:
            result.stdout.fnmatch_lines([line])
    words = ("PASSED ", "FAILED ", "ERROR ", "SKIPPED ")
    outcomes = [
        sorted(line.partition(" - ")[0] for line in result.outlines if line.startswith(words))
        for result in (outside, inside)
    ]
    assert len(TOGETHER) < len(outcomes[0])
    assert outcomes[0] == outcomes[1]


def test_the_documentation_names_every_plugin():
    """Users find each plugin that is tested here in the list of tested plugins."""
    path = pathlib.Path(__file__).parents[2] / "docs/how-to/plugins.md"
    named = path.read_text().partition("## Tested plugins")[2]
    plugins = [name for name in PACKAGES if name.startswith("pytest-")]
    assert [] == [name for name in [*plugins, "requests-mock", "respx"] if name not in named]


SOURCE = """
import pytest
def test_passes(record_property): record_property("key", "value")
def test_fails():
    print("output")
    assert 0
@pytest.mark.skip(reason="why")
def test_skipped(): pass
"""


def test_reportlog_has_the_reports(run, pytester, more_plugins):
    """pytest-reportlog's file has each report of a run outside."""
    found = []
    for sandbox in (False, True):
        path = pytester.path / f"{sandbox}.jsonl"
        run(SOURCE, f"--report-log={path}", sandbox=sandbox, plugins=("pytest_reportlog.plugin",))
        lines = map(json.loads, path.read_text().splitlines())
        reports = [line for line in lines if line["$report_type"] == "TestReport"]
        found.append([(one["nodeid"], one["when"], one["outcome"]) for one in reports])
    assert 8 == len(found[0])
    assert found[0] == found[1]


def test_json_report_has_the_results(run, pytester, more_plugins):
    """pytest-json-report's file has the tests, phases and output of a run outside."""
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


def test_csv_has_the_results(run, pytester, more_plugins):
    """pytest-csv's file has the lines of a run outside."""
    found = []
    for sandbox in (False, True):
        path = pytester.path / f"{sandbox}.csv"
        columns = "--csv-columns=id,status,message"
        run(SOURCE, f"--csv={path}", columns, sandbox=sandbox, plugins=("pytest_csv._plugin",))
        found.append(path.read_text().splitlines())
    assert 4 == len(found[0])
    assert found[0] == found[1]


HARVEST = """
import pytest
def test_a(results_bag): results_bag.score = (3, {"x"})
def test_b(results_bag): results_bag.score = 2.5
def test_collects(fixture_store, module_results_dct):
    bags = fixture_store["results_bag"].values()
    assert [(3, {"x"}), 2.5] == [bag.score for bag in bags]
    statuses = {name: found["status"] for name, found in module_results_dct.items()}
    assert {"test_a": "passed", "test_b": "passed"}.items() <= statuses.items()
"""


def test_harvest_has_the_results_of_all_tests(run, more_plugins):
    """A later test gets what earlier ones have put into their results bags; what is not data is an
    error of its test.
    """
    plugins = ("xdist", "pytest_harvest.plugin")
    for sandbox in (False, True):
        run(HARVEST, sandbox=sandbox, plugins=plugins).assert_outcomes(passed=3)
    result = run("def test(results_bag): results_bag.it = object()", plugins=plugins)
    assert 0 != result.ret
    result.stdout.fnmatch_lines(["*builtins.object*"])


def test_durations_is_refused_unless_it_does_nothing(run, more_plugins):
    """pytest-durations, which measures whenever it is installed, is refused without its option to
    do nothing.
    """
    result = run("def test(): pass", plugins=("pytest_durations",))
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines(["*pytest-durations measures*add --pytest-durations=0*"])
    run("def test(): pass", "--pytest-durations=0", plugins=("pytest_durations",)).assert_outcomes(
        passed=1
    )


HTTPSERVER = """
import urllib.request
def test(httpserver):
    httpserver.expect_request("/a").respond_with_data("x")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    assert b"x" == opener.open(httpserver.url_for("/a"), timeout=5).read()
"""
OVERRIDE = """
import pytest
from pytest_httpserver import HTTPServer

@pytest.fixture
def make_httpserver():
    with HTTPServer() as server:
        yield server
"""


def test_httpserver_needs_a_server_inside(run, pytester, more_plugins):
    """The server of pytest-httpserver, which has session scope, is refused with a hint; with an own
    fixture or a scope it runs inside.
    """
    pytest.importorskip("werkzeug")
    plugins = ("pytest_httpserver.pytest_plugin",)
    result = run(HTTPSERVER, plugins=plugins)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*a server of a fixture with a higher scope runs outside*"])
    run(HTTPSERVER, "--sandbox-scope=session", plugins=plugins).assert_outcomes(passed=1)
    run(OVERRIDE + HTTPSERVER, plugins=plugins).assert_outcomes(passed=1)
