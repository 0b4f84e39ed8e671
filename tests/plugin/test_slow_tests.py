"""``--sandbox-slow``: a test that runs for long is named while it runs."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.needs("root")

SLOW = """
    import select

    def wait_for_ever(): select.select([], [], [], 3)
    def test_slow(): wait_for_ever()
    def test_fast(): pass
    """


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_slow_test_is_named_at_each_doubling(run, jobs):
    """The line has the test, the seconds, and the innermost line of its stack; the result is
    nevertheless the plain one.
    """
    result = run(SLOW, "--sandbox-slow=0.5", f"--sandbox-jobs={jobs}")
    result.assert_outcomes(passed=2)
    result.stderr.fnmatch_lines(
        [
            f"sandbox: *.py::test_slow has run for {seconds} s, at *.py:3 in wait_for_ever"
            for seconds in ("0.5", "1", "2")
        ]
    )
    result.stderr.no_fnmatch_line("*test_fast*")


def test_a_worker_of_xdist_names_slow_tests(run):
    """The line of a worker is in the log too."""
    result = run(SLOW, "--sandbox-slow=1", "-n1", plugins=("xdist",))
    result.assert_outcomes(passed=2)
    result.stderr.fnmatch_lines(["sandbox: *::test_slow has run for 1 s, at *"])


def test_zero_names_no_test(run):
    """With 0, nothing is printed."""
    result = run(SLOW.replace("3)", "0.5)"), "-osandbox_slow=0")
    result.assert_outcomes(passed=2)
    result.stderr.no_fnmatch_line("*sandbox:*")


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf"])
def test_an_invalid_number_is_a_usage_error(run, value):
    """The error names the option, the value and the accepted form."""
    result = run(SLOW, f"--sandbox-slow={value}")
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines([f"*--sandbox-slow={value!r} is not a number of seconds*"])


THREAD = """
import threading, time, pytest

@pytest.fixture(scope="session", autouse=True)
def echo():
    threading.Thread(target=time.sleep, args=(60,), daemon=True, name="the echo").start()

def test_one(): time.sleep(1.5)
def test_two(): time.sleep(1.5)
def test_late():
    with pytest.raises(TimeoutError): raise TimeoutError
    raise TimeoutError
"""


def test_threads_of_the_pytest_process_are_named_once(run):
    """The first slow test is named with the threads that it does not have; a new interpreter has
    those of its own fixtures, so it has no such hint.
    """
    result = run(THREAD, "--sandbox-slow=0.5")
    result.assert_outcomes(passed=2, failed=1)
    named = [line for line in result.errlines if "a fork of it: 'the echo'" in line]
    assert 1 == len(named)
    result.stdout.fnmatch_lines(["*a fork of it: 'the echo'*"])
    result = run(THREAD, "--sandbox-slow=0.5", "--sandbox-fresh")
    result.assert_outcomes(passed=2, failed=1)
    assert "a fork of it" not in result.stderr.str() + result.stdout.str()
