"""``--sandbox-jobs``: tests run at the same time, and the results are those of one job."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest
from plugin.test_destructive_tests import PROVE

from pytest_sandbox.linux import cpus, memory

pytestmark = pytest.mark.needs("root")

#: Pipes that all tests inherit: inside, they are the only way from one test to another.
PIPES = """
    import os, select, pytest
    READER, WRITER = os.pipe()

    def receive():
        assert select.select([READER], [], [], 60)[0], "the other test does not run"
        return os.read(READER, 100)
    """

#: A suite with what a test can need from its parent.
SUITE = """
    import os, pytest, unittest, warnings

    @pytest.fixture(scope="session")
    def of_session():
        yield ["session"]

    @pytest.fixture(scope="module", params=["a", "b"])
    def of_module(request, of_session):
        return [request.param, *of_session]

    @pytest.fixture
    def own(tmp_path):
        (tmp_path / "file").write_text("1")
        yield tmp_path
        print("torn down")

    @pytest.fixture(scope="class")
    def late():
        return 7

    def test_first(of_session, own): print("first")
    @pytest.mark.parametrize("number", range(4))
    def test_number(of_module, number): assert number != 2, of_module
    def test_late(request): assert 7 == request.getfixturevalue("late")
    @pytest.mark.skip(reason="skipped")
    def test_skipped(): pass
    @pytest.mark.xfail
    def test_expected(): assert 0
    @pytest.mark.filterwarnings("error")
    def test_warning(): warnings.warn("an error")
    def test_warning_is_none_here(): warnings.warn("no error")
    def test_crash(): os.kill(os.getpid(), 9)
    def test_property(record_property, record_testsuite_property):
        record_property("a", 1)

    class TestClass:
        count = 0
        @classmethod
        def setup_class(cls): cls.count += 1
        def test_one(self): assert 1 == self.count
        def test_two(self): assert 1 == self.count

    class Case(unittest.TestCase):
        @classmethod
        def setUpClass(cls): cls.value = 5
        def test_value(self): self.assertEqual(5, self.value)
        def test_subtests(self):
            for number in range(3):
                with self.subTest(number=number):
                    self.assertNotEqual(1, number)

    @pytest.mark.no_sandbox
    def test_outside(): assert os.getppid()
    def test_exit_of_setup(own): raise KeyError("last")
    """


def test_two_tests_run_at_the_same_time(run):
    """A test can wait for what a later one does."""
    result = run(
        f"""{PIPES}
    def test_waits(): assert b"from the second" == receive()
    def test_answers(): os.write(WRITER, b"from the second")
    """,
        "--sandbox-jobs=2",
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["sandbox: 2 jobs"])


def test_a_test_whose_turn_is_later_starts_while_another_is_waited_for(run):
    """The place of a test that ends is used at once, not only at the next turn."""
    result = run(
        f"""{PIPES}
    def test_waits(): assert b"from the third" == receive()
    def test_second(): pass
    def test_answers(): os.write(WRITER, b"from the third")
    """,
        "--sandbox-jobs=2",
    )
    result.assert_outcomes(passed=3)


@pytest.mark.parametrize("jobs", [2, 8])
def test_the_reports_are_those_of_one_job(run, reports, pytester, jobs):
    """Reports come in the order of collection, with the same outcomes, texts and sections."""
    found = []
    for number in (1, jobs):
        run(
            SUITE,
            f"--sandbox-jobs={number}",
            "-osandbox_jobs_hooks=conftest.py",
            "--doctest-modules",
        )
        found.append([comparable(report) for report in reports()])
        (pytester.path / "reports.jsonl").unlink()
    assert found[0] == found[1]


def comparable(report: dict[str, Any]) -> tuple[Any, ...]:
    texts = [text for title, text in report["sections"] if title.startswith("Captured")]
    last_line = report["text"].rpartition("\n")[2]
    return report["test"], report["when"], report["outcome"], last_line, texts


def test_a_parametrized_module_fixture_is_set_up_once_for_each_parameter(run):
    """Tests of the next parameter do not start before the fixture of the first is torn down."""
    result = run(
        """
    import pytest
    ALIVE = []

    @pytest.fixture(scope="module", params=range(3))
    def server(request):
        ALIVE.append(request.param)
        yield request.param
        ALIVE.remove(request.param)

    @pytest.mark.parametrize("number", range(5))
    def test(server, number): assert [server] == ALIVE
    """,
        "--sandbox-jobs=4",
    )
    result.assert_outcomes(passed=15)


def test_a_fixture_is_set_up_again_without_a_parameter(run):
    """A test whose fixture is set up for a parameter, and that gives it none, does not start before
    the fixture is set up for it.
    """
    result = run(
        """
    import os, pytest

    @pytest.fixture(scope="module", autouse=True)
    def made(request): return os.getppid(), getattr(request, "param", None)

    @pytest.mark.parametrize("made", ["a", "b"], indirect=True)
    def test_a(made): assert made[0] and made[1]
    def test_b(made): assert made[0] and made[1] is None
    def test_c(made): assert made[0] and made[1] is None
    """,
        "--sandbox-jobs=4",
    )
    result.assert_outcomes(passed=4)
    result.stdout.no_fnmatch_line("*alone*")


def test_the_first_failure_discards_the_tests_that_have_started(run):
    """With -x, tests that have started after the failing one are not reported and are killed."""
    result = run(
        f"""{PIPES}
    def test_fails(): assert not receive()
    def test_never_ends():
        os.write(WRITER, b"runs")
        select.select([], [], [])
    def test_not_reported(): pass
    """,
        "-x",
        "--sandbox-jobs=3",
    )
    result.assert_outcomes(failed=1)


def test_a_test_alone_runs_while_no_other_does(run):
    """With alone=True, no test that was started runs, and none starts."""
    result = run(
        f"""{PIPES}
    import time

    def spend(name):
        os.write(WRITER, name.encode())
        time.sleep(0.05)
        os.write(WRITER, name.encode())

    @pytest.mark.parametrize("number", range(4))
    def test_before(number): spend("b")
    @pytest.mark.container(alone=True)
    def test_alone(): spend("X")
    @pytest.mark.parametrize("number", range(4))
    def test_later(number): spend("l")
    @pytest.mark.container(alone=True)
    def test_order():
        assert b"b" * 8 + b"XX" + b"l" * 8 == os.read(READER, 100)
    """,
        "--sandbox-jobs=4",
    )
    result.assert_outcomes(passed=10)


def test_a_test_that_holds_a_container_may_be_alone(run):
    """A test outside with alone=True waits for the end of those that have started inside."""
    result = run(
        f"""{PIPES}
    import time

    @pytest.mark.parametrize("number", range(4))
    def test_inside(number):
        os.write(WRITER, b"b")
        time.sleep(0.05)
        os.write(WRITER, b"b")
    @pytest.mark.container(alone=True)
    def test_outside(container): os.write(WRITER, b"X")
    @pytest.mark.container(alone=True)
    def test_order():
        assert b"b" * 8 + b"X" == os.read(READER, 100)
    """,
        "--sandbox-jobs=4",
    )
    result.assert_outcomes(passed=6)


def test_a_test_cannot_reach_the_reports_of_others(run):
    """A process of a test has the report channel and the captured output of no other test."""
    result = run(
        f"""{PIPES}
    import contextlib, time

    @pytest.mark.parametrize("number", range(8))
    def test(number):
        links = []
        for fd in range(256):
            with contextlib.suppress(OSError):
                links.append(os.readlink(f"/proc/self/fd/{{fd}}"))
        assert 1 == len([link for link in links if "memfd:reports" in link]), links
        time.sleep(0.02 * number)
    """,
        "--sandbox-jobs=4",
    )
    result.assert_outcomes(passed=8)


def test_tests_whose_limits_exceed_the_memory_run_one_after_the_other(run):
    """Limits of tests that run at the same time add up to no more than what the machine has."""
    result = run(
        f"""{PIPES}
    import time
    pytestmark = pytest.mark.container(memory={memory.total() * 6 // 10})

    @pytest.mark.parametrize("number", range(3))
    def test(number):
        os.write(WRITER, str(number).encode())
        time.sleep(0.05)
        os.write(WRITER, str(number).encode())
    @pytest.mark.container(alone=True)
    def test_order():
        assert b"001122" == os.read(READER, 100)
    """,
        "--sandbox-jobs=4",
    )
    result.assert_outcomes(passed=4)


def test_hooks_of_the_suite_mean_one_job(run, pytester):
    """A conftest file whose hook sees each report has one job, and is named; a setting declares it
    harmless.
    """
    pytester.makeconftest("def pytest_runtest_logreport(report): pass")
    source = "def test(): pass"
    result = run(source, "--sandbox-jobs=2")
    result.stdout.fnmatch_lines(
        ["sandbox: 1 job instead of 2: conftest.py implements pytest_runtest_logreport; *"]
    )
    result = run(source, "--sandbox-jobs=2", "-osandbox_jobs_hooks=conftest.py")
    result.stdout.fnmatch_lines(["sandbox: 2 jobs"])


@pytest.mark.parametrize("option", ["-s", "--pdb"])
def test_options_that_need_the_terminal_mean_one_job(run, option):
    """The terminal belongs to one test at a time, and the header says so."""
    result = run("def test(): pass", "--sandbox-jobs=2", option)
    result.stdout.fnmatch_lines(["sandbox: 1 job instead of 2: *"])


def test_auto_is_the_number_of_cpus(run):
    """The number is that of the CPUs that pytest may use."""
    usable = cpus.usable()
    result = run("def test(): pass", "-osandbox_jobs=auto")
    if usable > 1:
        result.stdout.fnmatch_lines([f"sandbox: {usable} jobs"])
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize("value", ["0", "many", "-3", "1001"])
def test_an_invalid_number_is_a_usage_error(run, value):
    """The error names the option, the value and the accepted form."""
    result = run("def test(): pass", f"--sandbox-jobs={value}")
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines([f"*--sandbox-jobs={value!r}: neither auto nor a number from 1*"])


def test_a_test_that_is_repeated_starts_again(run):
    """Rerunfailures repeats a test that had started early."""
    result = run(
        f"""{PIPES}
    os.set_blocking(READER, False)

    @pytest.mark.parametrize("number", range(4))
    def test(number):
        if number == 2:
            try:
                os.read(READER, 1)
            except BlockingIOError:
                os.write(WRITER, b"1")
                assert False, "the first time"
    """,
        "--sandbox-jobs=4",
        "--reruns=1",
        plugins=("rerunfailures",),
    )
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["*1 rerun*"])


def test_a_worker_of_xdist_has_jobs_of_its_own(run):
    """The tests that the controller has sent to a worker run at the same time."""
    result = run(
        f"""{PIPES}
    def test_waits(): assert b"x" == receive()
    def test_answers(): os.write(WRITER, b"x")
    """,
        "-n1",
        "--sandbox-jobs=2",
        plugins=("xdist",),
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["sandbox: 2 jobs in each of 1 workers"])


def test_auto_divides_the_cpus_between_the_workers_of_xdist(run):
    """Workers and jobs together are as many as there are CPUs, and the header says how many."""
    result = run("def test(): pass", "-n", "auto", "--sandbox-jobs=auto", plugins=("xdist",))
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["sandbox: 1 jobs in each of * workers"])


def test_the_timeout_of_a_plugin_ends_a_test_that_started_early(run):
    """pytest-timeout's limit holds inside, also for a test that does not react to its signal."""
    result = run(
        """
    import pytest, signal, time

    def test_first(): time.sleep(0.5)
    def test_slow(): time.sleep(60)
    def test_stubborn():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        time.sleep(60)
    """,
        "--sandbox-jobs=3",
        "--timeout=1",
        plugins=("timeout",),
    )
    result.assert_outcomes(passed=1, failed=2)


def test_an_interrupt_ends_all_tests(pytester, monkeypatch):
    """Ctrl-C ends the session, as with one job."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(
        f"""{PIPES}
    @pytest.mark.parametrize("number", range(6))
    def test(number):
        os.write(2, b"started\\n")
        select.select([], [], [])
    """
    )
    command = [sys.executable, "-mpytest", "-p", "sandbox", "--sandbox", "--sandbox-jobs=3"]
    with subprocess.Popen(
        [*command, "--capture=sys", "-pno:cacheprovider"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=pytester.path,
    ) as session:
        assert session.stderr is not None
        for _ in range(3):
            assert b"started\n" == session.stderr.readline()
        session.send_signal(signal.SIGINT)
        out, _ = session.communicate(timeout=60)
    assert pytest.ExitCode.INTERRUPTED == session.returncode
    assert b"KeyboardInterrupt" in out
    assert b"3 jobs" in out
    text = out.decode().partition("!!! KeyboardInterrupt !!!")[2]
    named = text.partition("sandbox: running when the session was interrupted:")[2]
    assert ["s  test_an_interrupt_ends_all_tests.py::test"] * 3 == [
        line.split(maxsplit=1)[1].partition("[")[0] for line in named.strip().splitlines()
    ]


def test_an_option_without_effect_says_so(run):
    """Without --sandbox and marks, the header says that nothing runs in parallel; with a mark, the
    option is about the tests that have it.
    """
    plain = "def test(): pass"
    result = run(plain, "--sandbox-jobs=2", sandbox=False)
    result.stdout.fnmatch_lines(["sandbox: --sandbox-jobs has no effect: *"])
    assert pytest.ExitCode.USAGE_ERROR == run(plain, "--sandbox-jobs=x", sandbox=False).ret
    run(plain, "-osandbox_jobs=2", sandbox=False).stdout.no_fnmatch_line("sandbox:*")
    result = run(
        f"""{PIPES}
    @pytest.mark.container
    def test_waits(): assert b"x" == receive()
    @pytest.mark.container
    def test_answers(): os.write(WRITER, b"x")
    """,
        "--sandbox-jobs=2",
        sandbox=False,
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["sandbox: 2 jobs"])


#: Signals to every process that a test can name: by number, by group, and all at once.
ATTACK = f"""{PROVE}
    import contextlib
    from test_first import PIDS, READER, WRITER

    def attack():
        prove_inside()
        for number in (signal.SIGSTOP, signal.SIGKILL, signal.SIGSEGV, signal.SIGINT):
            for pid in (-1, 1, *range(2, 2000), *PIDS):
                if pid != os.getpid():
                    with contextlib.suppress(OSError):
                        os.kill(pid, number)
            for pid in PIDS:
                with contextlib.suppress(OSError):
                    os.killpg(pid, number)

    @pytest.mark.parametrize("number", range(3))
    def test_attack(number):
        attack()
        os.write(WRITER, b"x")
"""


@pytest.mark.parametrize("scope", ["function", "module"])
def test_a_test_cannot_stop_or_kill_others(run, pytester, scope):
    """Signals to all processes that a test can name reach neither a test beside it, nor the parent,
    nor the launcher.
    """
    first = f"""{PIPES}
    PIDS = [os.getpid(), os.getppid()]
    def test_waits():
        got = b""
        while len(got) < 3:
            got += receive()
    """
    pytester.makepyfile(test_first=first, test_second=ATTACK)
    files = ("test_first.py", "test_second.py")
    result = run("", "--sandbox-jobs=8", f"--sandbox-scope={scope}", *files)
    result.assert_outcomes(passed=4)


def test_a_test_that_stops_itself_delays_no_other(run):
    """A test that has stopped ends at its timeout, and all others have run meanwhile."""
    result = run(
        f"""{PIPES}
    import signal

    @pytest.mark.container(timeout=2)
    def test_stops(): os.kill(os.getpid(), signal.SIGSTOP)
    @pytest.mark.parametrize("number", range(8))
    def test_other(number): os.write(WRITER, b"x")
    def test_order(): assert 8 == len(os.read(READER, 100))
    """,
        "--sandbox-jobs=2",
    )
    result.assert_outcomes(passed=9, failed=1)
    result.stdout.fnmatch_lines(["*timeout: still running after 2 s*"])
