"""``fresh=True``: a test runs in a new interpreter inside the container."""

from __future__ import annotations

import os
import sys
import time
from types import SimpleNamespace

import pytest

from pytest_sandbox import Settings
from pytest_sandbox.plugin import fresh

pytestmark = pytest.mark.needs("root")

MODULE = """
import os, sys, threading, pytest
PID = os.getpid()
thread = threading.Thread(target=threading.Event().wait, daemon=True)
thread.start()
log = []

@pytest.fixture(scope="session")
def wide(): log.append("wide"); return os.getpid()

@pytest.fixture(scope="module", autouse=True)
def inside():
    log.append(os.getpid() == PID)
    yield
"""


def test_everything_is_created_inside(run):
    """Imports, threads started at import, and fixtures of every scope are of the test's process;
    those of the parent are not set up for it, and stay as they are for other tests.
    """
    run(
        MODULE
        + """
@pytest.mark.container(fresh=True)
def test_a(wide):
    assert os.getpid() == PID == wide and os.getpid() < 10
    assert any(one is thread for one in threading.enumerate()) and thread.is_alive()
    assert log == [True, "wide"] or log == ["wide", True]
def test_b():
    assert os.getpid() != PID and log == [True]
@pytest.mark.container(fresh=True)
def test_c(wide): assert wide == PID
def test_d(wide): assert wide != os.getpid() and log == [True, "wide"]
"""
    ).assert_outcomes(passed=4)


def test_reports_are_those_of_a_fork(run, reports):
    """Output, properties, warnings, skips, expected failures and assertions look the same."""
    source = """
import pytest, warnings, sys
@pytest.fixture
def broken(): print("set up"); raise OSError("no")
def test_passed(record_property): record_property("own", 1); print("out"); sys.stderr.write("err")
def test_failed(): print("before"); a = 1; assert a == 2, "why"
def test_error(broken): pass
@pytest.mark.xfail
def test_xfailed(): assert 0
def test_skipped(): pytest.skip("reason")
def test_warns(): warnings.warn("careful")
@pytest.mark.parametrize("value", ["a/b", "x::y", "z[0]"])
def test_parameter(value): assert value
"""
    found = []
    for options in ([], ["--sandbox-fresh"]):
        if os.path.exists("reports.jsonl"):
            os.unlink("reports.jsonl")
        result = run(source, *options)
        result.assert_outcomes(passed=5, failed=1, errors=1, xfailed=1, skipped=1, warnings=1)
        found.append(
            [
                (
                    one["test"],
                    one["when"],
                    one["outcome"],
                    one["text"],
                    [part for part in one["sections"] if part[0].startswith("Captured")],
                    one["properties"].get("own"),
                )
                for one in reports()
            ]
        )
    assert found[0] == found[1]


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_scope_shares_one_new_interpreter(run, jobs):
    """The tests of a module share a new interpreter; after a crash, a newer one goes on."""
    run(
        MODULE
        + """
def test_a(wide): log.append("a")
def test_b(): assert log[-1] == "a" and os.getpid() == PID
def test_c(): os._exit(3)
def test_d(): assert "a" not in log and os.getpid() == PID
def test_e(): assert 0
def test_f(wide): assert log.count(True) == 1
""",
        "--sandbox-fresh",
        "--sandbox-scope=module",
        f"--sandbox-jobs={jobs}",
    ).assert_outcomes(passed=4, failed=2)


@pytest.mark.parametrize(
    ("conftest", "source", "text"),
    [
        (
            "import os\nif os.getppid() == 0: raise OSError('only outside')",
            "def test_a(): pass",
            "only outside",
        ),
        ("import os\nif os.getppid() == 0: os.abort()", "def test_a(): pass", "SIGABRT"),
        (
            "",
            "import os, pytest\n@pytest.mark.parametrize('a', [os.getpid()])\ndef test_a(a): pass",
            "has not collected",
        ),
        (
            "",
            "import os, time\nif os.getppid() == 0: time.sleep(60)\ndef test_a(): pass",
            "timeout",
        ),
        ("", "import os\nif os.getppid() == 0: 1 / 0\ndef test_a(): pass", "ZeroDivisionError"),
    ],
)
def test_a_start_that_fails_is_a_failure(run, pytester, conftest, source, text):
    """A conftest file or test file that fails, crashes or hangs in the new interpreter, and a test
    that it does not collect, fail the test and show why.
    """
    pytester.makeconftest(conftest)
    start = time.monotonic()
    result = run(source, "--sandbox-fresh", "--sandbox-timeout=5")
    assert time.monotonic() - start < 30
    assert 1 == result.ret
    assert text in result.stdout.str()


def test_an_interpreter_that_starts_slowly(run, pytester, monkeypatch):
    """A test whose interpreter has not started when it is named as slow goes on; one with a
    timeout has exceeded it, and no signal has killed it.
    """
    pytester.makepyfile(sitecustomize="import os, time; time.sleep(2 * (os.getppid() == 0))")
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))
    source = "def test_a(): pass"
    result = run(source, "--sandbox-fresh", "--sandbox-slow=0.5")
    result.assert_outcomes(passed=1)
    result.stderr.fnmatch_lines(["*::test_a has run for 0.5 s"])
    result = run(source, "--sandbox-fresh", "--sandbox-timeout=0.5")
    assert "timeout: still running after 0.5 s" in result.stdout.str()
    assert "killed by signal" not in result.stdout.str()


def test_unittest_doctest_and_subtests(run, pytester):
    """Other kinds of items are found and run."""
    pytester.makefile(".txt", test_text=">>> import os\n>>> os.getpid() < 10\nTrue\n")
    run(
        """
import os, unittest
PID = os.getpid()
class TestThem(unittest.TestCase):
    @classmethod
    def setUpClass(cls): cls.pid = os.getpid()
    def test_a(self): assert self.pid == PID == os.getpid()
def function():
    '''
    >>> PID == os.getpid()
    True
    '''
""",
        "--sandbox-fresh",
        "--doctest-modules",
    ).assert_outcomes(passed=3)


def test_options_and_environment_are_the_same(run, pytester, monkeypatch):
    """Options, ini settings, -p, sys.path, the directory and the environment are those outside."""
    pytester.mkpydir("lib")
    pytester.makepyfile(**{"lib/helper": "VALUE = 3"})
    monkeypatch.setenv("GIVEN", "value")
    pytester.makeconftest(
        "def pytest_addoption(parser): parser.addoption('--own')\n"
        "def pytest_configure(config): config.own = config.getoption('--own')\n"
    )
    run(
        f"""
import os, sys
def test_a(pytestconfig, tmp_path):
    assert pytestconfig.own == "x"
    assert os.environ["GIVEN"] == "value" and os.getcwd() == {str(pytester.path)!r}
    assert not pytestconfig.pluginmanager.hasplugin("doctest")
    assert pytestconfig.rootpath == pytestconfig.invocation_params.dir
    assert tmp_path.parent.name.startswith("runpytest-")
    import helper
    assert helper.VALUE == 3
""",
        "--sandbox-fresh",
        "--own=x",
        "-p",
        "no:doctest",
        "-o",
        "pythonpath=lib",
        "-k",
        "test_a",
    ).assert_outcomes(passed=1)


@pytest.mark.parametrize("options", [("-x",), ("--sandbox-jobs=4", "-x")])
def test_the_first_failure_ends_the_session(run, options):
    """With -x, later tests are not reported."""
    run(
        "def test_a(): pass\ndef test_b(): assert 0\ndef test_c(): pass",
        "--sandbox-fresh",
        *options,
    ).assert_outcomes(passed=1, failed=1)


def test_xdist(run):
    """Workers of xdist start new interpreters without workers of their own."""
    pytest.importorskip("xdist")
    run(
        "import os\n" + "".join(f"def test_{i}(): assert os.getpid() < 10\n" for i in range(4)),
        "--sandbox-fresh",
        "-n2",
        plugins=("xdist",),
    ).assert_outcomes(passed=4)


def test_coverage(run, pytester):
    """The lines that ran in the new interpreter are counted, those of imports too."""
    pytest.importorskip("pytest_cov")
    pytester.makepyfile(shop="def a():\n    return 1\ndef b():\n    return 2\n")
    result = run(
        "import shop\ndef test_a(): shop.a()\ndef test_b(): shop.b()\n",
        "--sandbox-fresh",
        "--cov=shop",
        "--cov-report=term-missing",
        plugins=("pytest_cov",),
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["shop.py*100%*"])


@pytest.mark.parametrize("plugin", ["pytest_timeout", "pytest_rerunfailures", "pytest_randomly"])
def test_other_plugins(run, plugin):
    """A timeout of pytest-timeout, a repeated test, and a random order."""
    pytest.importorskip(plugin)
    options = {"pytest_timeout": ["--timeout=2"], "pytest_rerunfailures": ["--reruns=1"]}
    result = run(
        "import time\ndef test_a(): pass\ndef test_b(): time.sleep(4); assert 0\n",
        "--sandbox-fresh",
        *options.get(plugin, []),
        plugins=(plugin,),
    )
    assert (1, 1) == (result.parseoutcomes()["passed"], result.parseoutcomes()["failed"])


def test_output_without_capture(run):
    """With -s, what the test prints is shown, and nothing of the new session's own."""
    result = run("def test_a(): print('from the test')", "--sandbox-fresh", "-s")
    result.assert_outcomes(passed=1)
    assert 1 == result.stdout.str().count("test session starts")
    result.stdout.fnmatch_lines(["*from the test*"])


def test_a_crash_shows_its_output(run, failed_report):
    """What a test has printed before it crashes is in its report."""
    run("import os\ndef test_a(): os.write(1, b'printed'); os.abort()", "--sandbox-fresh")
    report = failed_report()
    assert "SIGABRT" in report["text"]
    assert "printed" == report["sections"]["Captured stdout call"]


def test_other_values_are_usage_errors(run):
    """Anything but True and False is rejected."""
    result = run("import pytest\n@pytest.mark.container(fresh=1)\ndef test_a(): pass")
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    assert "expected True or False" in result.stderr.str()


@pytest.mark.parametrize(
    ("image", "plugins", "text"),
    [("debian:12", None, "needs image='host'"), ("host", ["a", object()], "the plugin object")],
)
def test_what_a_new_interpreter_cannot_have_is_a_usage_error(image, plugins, text):
    """An image, and a plugin that is an object of this process, are rejected."""
    parameters = SimpleNamespace(plugins=plugins)
    item = SimpleNamespace(nodeid="x", config=SimpleNamespace(invocation_params=parameters))
    with pytest.raises(pytest.UsageError, match=text):
        fresh.check(item, Settings(image=image))
    fresh.check(
        SimpleNamespace(
            nodeid="x",
            config=SimpleNamespace(invocation_params=SimpleNamespace(plugins=["a"])),
        ),
        Settings(),
    )


def test_a_mark_keeps_a_test_in_a_fork(run):
    """fresh=False by a nearer mark overrides the configuration, and the option overrides both."""
    source = """
import os, pytest
PID = os.getpid()
@pytest.mark.container(fresh=False)
def test_a(): assert (os.getpid() == PID) is WANTED
def test_b(): assert os.getpid() == PID
"""
    for wanted, options in (("False", ["-o", "sandbox_fresh=true"]), ("True", ["--sandbox-fresh"])):
        run(source.replace("WANTED", wanted), *options).assert_outcomes(passed=2)


def test_modules_that_the_other_interpreter_lacks(run, pytester):
    """A shared session in which a later test's file is not there inside: that test fails alone."""
    pytester.makepyfile(
        test_other="import os\nif os.getppid() == 0: raise OSError('inside')\ndef test_z(): pass"
    )
    run(
        "import os\nPID = os.getpid()\ndef test_a(): assert PID == os.getpid()",
        "--sandbox-fresh",
        "--sandbox-scope=session",
    ).assert_outcomes(passed=1, errors=1)


def test_interrupt_and_exit(run, pytester):
    """Ctrl-C reaches the test in the new interpreter; pytest.exit() ends the session."""
    result = run(
        "import pytest\ndef test_a(): pytest.exit('enough', 7)\ndef test_b(): pass",
        "--sandbox-fresh",
    )
    assert 7 == result.ret
    pytester.makeconftest(
        """
import os, signal, threading
def pytest_runtest_logstart(nodeid):
    if os.getppid() != 0:
        threading.Timer(3, os.kill, (os.getpid(), signal.SIGINT)).start()
"""
    )
    start = time.monotonic()
    result = run("import time\ndef test_a(): time.sleep(60)", "--sandbox-fresh")
    assert pytest.ExitCode.INTERRUPTED == result.ret
    assert time.monotonic() - start < 30
    result.stdout.fnmatch_lines(["*KeyboardInterrupt*"])


def test_options_of_the_interpreter(pytester, monkeypatch):
    """-X and -W of the parent's interpreter hold inside."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makepyfile(
        "import os, sys\nPID = os.getpid()\n"
        "def test_a():\n"
        "    assert sys.flags.dev_mode and 'error::FutureWarning' in sys.warnoptions\n"
        "    assert PID == os.getpid() and os.getppid() == 0\n"
    )
    command = [sys.executable, "-X", "dev", "-W", "error::FutureWarning", "-m", "pytest"]
    options = ["-p", "sandbox", "--sandbox", "--sandbox-fresh"]
    pytester.run(*command, *options, timeout=60).assert_outcomes(passed=1)


def test_an_interpreter_that_cannot_be_executed(run, pytester):
    """An interpreter that cannot be executed is a failure that says so."""
    pytester.makeconftest(
        "import sys\ndef pytest_sandbox_started(): sys.executable = '/nonexistent/python3'\n"
    )
    result = run("def test_a(): pass", "--sandbox-fresh")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*the new interpreter /nonexistent/python3 cannot be started*"])
