"""Other plugins, installed from PyPI, work inside as outside."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.needs("root")


def test_tests_of_xdist_workers_are_isolated(run):
    """Tests that run at the same time do not see each other's files, and cannot write to the stream
    of a worker's controller.
    """
    result = run(
        """
    import os, pathlib, pytest

    @pytest.mark.parametrize("number", range(12))
    def test(number):
        assert 0 == os.getppid()
        pathlib.Path("/opt/only-one").touch(exist_ok=False)
        for fd in range(3, 128):
            try:
                os.set_blocking(fd, False)
                os.write(fd, b"garbage")
            except OSError:
                pass
    """,
        "-n2",
        "--dist=worksteal",
        plugins=("xdist",),
    )
    result.assert_outcomes(passed=12)


def test_a_crash_inside_does_not_end_an_xdist_worker(run):
    """A test that kills itself does not end its worker, and its report has the properties of its
    container.
    """
    result = run(
        """
    import os, pytest
    @pytest.mark.parametrize("number", range(6))
    def test(number):
        if number == 3: os.kill(0, 9)
    """,
        "-n2",
        "--sandbox-stats=3",
        plugins=("xdist",),
    )
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(["*killed by SIGKILL*"])
    result.stdout.no_fnmatch_line("*node down*")
    result.stdout.fnmatch_lines(["*most expensive*", "*MiB*::test*"])


def test_xdist_reports_an_invalid_mark_once(run):
    """A usage error that the workers find is reported once, by the controller; no test runs."""
    result = run(
        "import pytest\n@pytest.mark.container(memroy='1g')\ndef test(): pass",
        "-n2",
        plugins=("xdist",),
    )
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    assert 1 == result.stderr.str().count("memroy='1g' is not valid")
    assert "INTERNALERROR" not in result.stdout.str()


LIBRARY = """
import os, sys

def branch(yes):
    if yes:
        return os.getppid()
    return 2

def in_a_fork():
    return 3

if __name__ == "__main__":
    print(in_a_fork())
"""


@pytest.mark.parametrize("workers", [(), ("-n2",)])
def test_coverage_is_complete_with_the_option_cov(run, pytester, workers):
    """``--cov`` measures all lines and branches that run inside and in Python subprocesses, also
    under xdist, and leaves no other file.
    """
    pytester.makepyfile(library=LIBRARY)
    result = run(
        """
    import subprocess, sys, library
    def test_one(): assert 0 == library.branch(True)
    def test_other(): assert library.branch(False)
    def test_subprocess(): subprocess.run([sys.executable, "library.py"], check=True)
    """,
        *workers,
        "--cov=library",
        "--cov-branch",
        "--cov-fail-under=100",
        "--cov-report=term-missing",
        plugins=("pytest_cov", "xdist"),
    )
    result.assert_outcomes(passed=3)
    assert 0 == result.ret
    assert [".coverage"] == [path.name for path in pytester.path.glob(".coverage*")]


def test_coverage_contexts_name_the_tests(run, pytester):
    """With ``--cov-context=test`` the data tell which test ran a line inside."""
    pytester.makepyfile(library=LIBRARY)
    run(
        "import library\ndef test_one(): library.branch(True)\ndef test_other(): "
        "library.branch(False)",
        "--cov=library",
        "--cov-context=test",
        plugins=("pytest_cov",),
    ).assert_outcomes(passed=2)
    from coverage import CoverageData

    data = CoverageData(str(pytester.path / ".coverage"))
    data.read()
    assert {"test_one|run", "test_other|run"} <= {
        context.rpartition("::")[2] for context in data.measured_contexts()
    }


@pytest.mark.parametrize("method", ["signal", "thread"])
def test_timeout_ends_a_test_with_its_stack(run, method):
    """pytest-timeout's timer runs inside: its failure shows where the test was."""
    result = run(
        """
    import time
    def wait_here(): time.sleep(100)
    def test_slow(): wait_here()
    def test_next(): pass
    """,
        "--timeout=4",
        f"--timeout-method={method}",
        plugins=("pytest_timeout",),
    )
    result.assert_outcomes(passed=1, failed=1)
    assert "wait_here" in result.stdout.str() + result.stderr.str()
    assert "Timeout" in result.stdout.str() + result.stderr.str()


def test_rerunfailures_runs_a_test_again_in_a_fresh_container(run):
    """A rerun starts with an empty writable layer; a crash is rerun; ``only_rerun`` selects
    exceptions.
    """
    result = run(
        """
    import os, pathlib, pytest

    count = pathlib.Path(os.environ["COUNT"])

    def tries(name):
        with (count / name).open("ab") as file:
            file.write(b"x")
            return file.tell()

    @pytest.mark.flaky(reruns=2)
    @pytest.mark.container(volumes=[f"{count}:{count}"])
    def test_flaky():
        pathlib.Path("/opt/once").touch(exist_ok=False)
        assert 3 == tries("flaky")

    @pytest.mark.flaky(reruns=1)
    @pytest.mark.container(volumes=[f"{count}:{count}"])
    def test_crashes():
        if tries("crashes") == 1: os.abort()

    @pytest.mark.flaky(reruns=3, only_rerun="ValueError")
    def test_another_error(): raise KeyError("no rerun")
    """,
        plugins=("rerunfailures",),
    )
    assert {"passed": 2, "failed": 1, "rerun": 3} == result.parseoutcomes()


@pytest.fixture(autouse=True)
def count(tmp_path_factory, monkeypatch):
    """Set COUNT to a directory of the host that reruns share."""
    monkeypatch.setenv("COUNT", str(tmp_path_factory.mktemp("count")))


def test_randomly_seeds_what_runs_inside(run):
    """The seed of pytest-randomly is that of a test inside, so that its numbers repeat."""
    source = (
        "import random\ndef test(): print('drew', random.random(), random.Random().random() > 0)"
    )
    first, second = (
        run(source, "-s", "--randomly-seed=7", plugins=("randomly",)) for _ in range(2)
    )
    drew = [[line for line in result.outlines if "drew" in line] for result in (first, second)]
    assert drew[0]
    assert drew[0] == drew[1]


def test_asyncio_and_anyio_run_coroutines_inside(run, pytester):
    """Async tests and fixtures of both plugins run inside, also with an event loop of a higher
    scope.
    """
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    result = run(
        """
    import asyncio, os, pytest, pytest_asyncio

    @pytest_asyncio.fixture
    async def value():
        await asyncio.sleep(0)
        yield os.getppid()

    @pytest.mark.asyncio
    async def test_asyncio(value):
        assert 0 == value == os.getppid()
        process = await asyncio.create_subprocess_exec("true")
        assert 0 == await process.wait()

    @pytest.mark.asyncio(loop_scope="module")
    class TestOneLoop:
        async def test_a(self): await asyncio.sleep(0.01)
        async def test_b(self): await asyncio.sleep(0.01)

    @pytest.mark.anyio
    async def test_anyio():
        import anyio
        await anyio.sleep(0.01)
        assert 0 == os.getppid()
    """,
        plugins=("asyncio", "anyio"),
    )
    result.assert_outcomes(passed=5)


def test_hypothesis_reports_examples_and_statistics(run, pytester):
    """The failing example of a property and the statistics are reported."""
    result = run(
        """
    from hypothesis import given, strategies as st
    @given(st.integers())
    def test_holds(n): assert n + 0 == n
    @given(st.integers())
    def test_fails(n): assert n < 100
    """,
        "--hypothesis-show-statistics",
        plugins=("hypothesispytest",),
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*n=100*"])
    result.stdout.fnmatch_lines(["*Hypothesis Statistics*", "*test_holds*"])


def test_mocks_are_undone(run):
    """Patches of pytest-mock apply inside and are undone after the test."""
    run(
        """
    import os
    def test(mocker):
        mocker.patch("os.getcwd", return_value="/mocked")
        assert "/mocked" == os.getcwd()
    def test_next(): assert "/mocked" != os.getcwd()
    """,
        plugins=("pytest_mock",),
    ).assert_outcomes(passed=2)


def test_html_shows_each_test_once_with_its_extras(run, pytester):
    """pytest-html's page has each test once, with its output and what a conftest file adds."""
    pytester.makeconftest("""
        import pytest, pytest_html

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            if report.when == "call":
                extra = pytest_html.extras.text("extra of " + item.name)
                report.extras = [*getattr(report, "extras", []), extra]
            return report
    """)
    run(
        "def test_a(): pass\ndef test_b(): print('its output'); assert 0",
        "--html=out.html",
        "--self-contained-html",
        plugins=("html", "metadata"),
    ).assert_outcomes(passed=1, failed=1)
    page = (pytester.path / "out.html").read_text()
    blob = (
        page[page.index("data-jsonblob=") :]
        .partition('"')[2]
        .partition('"')[0]
        .replace("&#34;", '"')
        .replace("&quot;", '"')
    )
    tests = json.loads(
        blob.replace("&#39;", "'").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    )["tests"]
    found = {name.rpartition("::")[2]: results for name, results in tests.items()}
    assert {"test_a": ["Passed"], "test_b": ["Failed"]} == {
        name: [one["result"] for one in results] for name, results in found.items()
    }
    assert 1 == len(found["test_b"][0]["extras"])
    assert "its output" in found["test_b"][0]["log"]
    assert "container" in found["test_b"][0]["log"]


def test_benchmarks_are_in_the_table(run, pytester):
    """Measurements inside are in pytest-benchmark's table and file."""
    result = run(
        "def test_speed(benchmark): benchmark.pedantic(sum, ([1, 2],), rounds=5, iterations=2)",
        "--benchmark-json=out.json",
        plugins=("benchmark",),
    )
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*benchmark: 1 tests*", "test_speed *"])
    (bench,) = json.loads((pytester.path / "out.json").read_text())["benchmarks"]
    assert ("test_speed", 5, 2) == (
        bench["name"],
        bench["stats"]["rounds"],
        bench["stats"]["iterations"],
    )


def test_each_test_has_a_fresh_django_database(run, pytester):
    """pytest-django's test database is created once, outside; each test inside sees it empty."""
    pytester.makepyfile(
        settings="""
        import os
        SECRET_KEY = "x"
        INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth"]
        DATABASES = {
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": "db.sqlite3",
                "TEST": {"NAME": "test.sqlite3"},
            }
        }
        USE_TZ = True
        """
    )
    run(
        """
    import pytest
    from django.contrib.auth.models import User

    @pytest.mark.django_db
    @pytest.mark.parametrize("n", range(2))
    def test_fresh(n):
        assert 0 == User.objects.count()
        User.objects.create(username="x")
        assert 1 == User.objects.count()

    @pytest.mark.django_db(transaction=True)
    def test_transaction():
        User.objects.create(username="y")
    """,
        "--ds=settings",
        plugins=("django",),
    ).assert_outcomes(passed=3)


def test_a_plugin_that_repeats_tests_gets_all_reports(run, pytester):
    """A conftest file that runs the protocol several times gets the reports of each run."""
    pytester.makeconftest("""
        from _pytest.runner import runtestprotocol

        def pytest_runtest_protocol(item, nextitem):
            item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
            for _ in range(3):
                reports = runtestprotocol(item, nextitem=nextitem, log=False)
            for report in reports:
                item.ihook.pytest_runtest_logreport(report=report)
            item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
            return True
    """)
    run("""
    import os, pathlib
    def test_a():
        assert 0 == os.getppid()
        pathlib.Path("/opt/once").touch(exist_ok=False)
    def test_b(): assert 0
    """).assert_outcomes(passed=1, failed=1)


def test_flaky_repeats_failures_and_reports_them(run):
    """flaky, which has a protocol of its own, sees the exceptions of tests: a test that always
    fails is a failure.
    """
    result = run(
        """
    from flaky import flaky

    @flaky
    def test_always_fails():
        assert 1 == 2

    @flaky
    def test_passes(): pass

    def test_unmarked_fails():
        assert 3 == 4
    """,
        plugins=("flaky.flaky_pytest_plugin",),
    )
    assert 1 == result.ret
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*test_always_fails failed; it passed 0 out of*"])


def test_a_debugger_is_offered_a_failure_once(run, pytester):
    """``pytest_exception_interact`` of a conftest.py is called in the test's process alone."""
    pytester.makeconftest("""
    import os
    def pytest_exception_interact(node, call, report):
        print("interact", node.name, os.getppid() == 0)
    """)
    result = run("def test(): assert 0\ndef test_two(): assert 0", "-s")
    result.assert_outcomes(failed=2)
    assert 2 == result.stdout.str().count("interact")
    result.stdout.fnmatch_lines(["*interact test True*", "*interact test_two True*"])
