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
