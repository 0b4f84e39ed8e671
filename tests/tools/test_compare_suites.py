from __future__ import annotations

import socket
import sys
import time

import compare_suites
import pytest
from compare_suites import NotRun, Prepared, compare, convincing, counts, finish, outcomes, running
from suites import ALL, SUITES, Suite

PASSED = {"t::a": "passed", "t::b": "passed"}


@pytest.fixture
def compared(monkeypatch, tmp_path):
    """Compare runs with given outcomes: those of plain runs, and those of runs inside."""

    def compared(plain, inside, *differs, modes=((),), seconds=(), rounds=1):
        left = {False: list(plain), True: list(inside)}
        times = list(seconds)
        monkeypatch.setattr(
            compare_suites,
            "run",
            lambda _, options: (left[bool(options)].pop(0), times.pop(0) if times else 1.0),
        )
        suite = Suite("some", "1.0", differs=differs)
        prepared = Prepared(suite, tmp_path / "python", tmp_path / "src/some")
        result = compare(prepared, modes, rounds)
        assert {False: [], True: []} == left
        return result

    return compared


def test_equal_outcomes_need_one_run_of_each_kind(compared, capsys):
    """A suite with the same outcomes inside is run once outside and once inside."""
    assert compared([PASSED], [PASSED])
    output = capsys.readouterr().out
    assert "2 passed; 1.0 s" in output
    assert "some --sandbox: 0 differ" in output


def test_each_mode_is_compared_with_one_run_outside(compared, capsys):
    """The outcomes of every mode are compared, and named by its options."""
    broken = {**PASSED, "t::b": "failure"}
    modes = ((), ("--sandbox-jobs=2",))
    assert not compared([PASSED, PASSED], [PASSED, broken, broken], modes=modes)
    output = capsys.readouterr().out
    assert "some --sandbox: 0 differ" in output
    assert "some --sandbox --sandbox-jobs=2: 1 differ" in output


def test_rounds_give_the_median_of_the_ratios(compared, capsys):
    """Each round has a plain run of its own, by whose time that of each mode is divided."""
    modes = ((), ("--sandbox-jobs=8",))
    seconds = [10.0, 20.0, 3.0, 10.0, 30.0, 4.0, 20.0, 20.0, 10.0]
    assert compared([PASSED] * 3, [PASSED] * 6, modes=modes, seconds=seconds, rounds=3)
    output = capsys.readouterr().out
    assert "some --sandbox: 2.00 x plain in the median of 3 rounds, 1.00 to 3.00" in output
    assert "some --sandbox --sandbox-jobs=8: 0.40 x plain in the median of 3 rounds" in output


def test_a_difference_in_one_round_is_a_failure(compared):
    """An outcome that differs in any of the rounds makes the comparison fail."""
    broken = {**PASSED, "t::b": "failure"}
    assert not compared([PASSED] * 3, [broken, broken, PASSED], rounds=2)


@pytest.mark.parametrize("outcome", ["failure", "error", "skipped", None])
def test_a_different_outcome_is_a_failure(compared, capsys, outcome):
    """A test that fails, is skipped or is missing inside makes the comparison fail."""
    inside = {**PASSED, "t::b": outcome} if outcome else {"t::a": "passed"}
    assert not compared([PASSED, PASSED], [inside, inside])
    assert f"t::b: passed -> {outcome or 'missing'}: UNEXPECTED" in capsys.readouterr().out


def test_an_outcome_that_differs_in_one_run_only_is_a_failure(compared, capsys):
    """A test that differs in either of the runs inside is a difference."""
    assert not compared(
        [PASSED, PASSED], [{**PASSED, "t::a": "error"}, {**PASSED, "t::b": "error"}]
    )
    assert "2 differ, of them 2 unexpectedly" in capsys.readouterr().out


def test_an_expected_difference_is_printed_with_its_reason(compared, capsys):
    """A difference that the table expects is printed with the reason, and is no failure."""
    assert compared([PASSED], [{**PASSED, "t::b": "failure"}], ("t::b*", "no such thing inside"))
    assert "t::b: passed -> failure: no such thing inside" in capsys.readouterr().out


def test_an_expected_difference_hides_no_other(compared):
    """The difference of a test that the table does not name is a failure."""
    inside = {"t::a": "failure", "t::b": "failure"}
    assert not compared([PASSED, PASSED], [inside, inside], ("t::b", "a reason"))


def test_a_test_that_is_unstable_outside_is_not_compared(compared, capsys):
    """A test with two outcomes in the plain runs is named, and is no failure."""
    unstable = {**PASSED, "t::b": "failure"}
    assert compared([PASSED, unstable], [unstable, PASSED])
    assert "t::b: unstable without --sandbox" in capsys.readouterr().out


def test_a_suite_that_mostly_fails_outside_proves_nothing(compared):
    """A suite of which most tests fail or are skipped outside is refused before a run inside."""
    with pytest.raises(NotRun, match="too few tests pass"):
        compared([{"t::a": "passed", "t::b": "skipped", "t::c": "error"}], [])


def test_no_tests_are_not_convincing():
    """A run without tests proves nothing."""
    assert not convincing({})


def test_tests_with_one_name_are_compared_in_order(tmp_path):
    """If several tests have one name, the outcome of each counts."""
    report = tmp_path / "report.xml"
    case = '<testcase classname="t" name="a">{}</testcase>'
    report.write_text(f"<s>{case.format('')}{case.format('<failure/>')}</s>")
    found = outcomes(report)
    assert {"t::a": "passed, failure"} == found
    assert "1 failure, 1 passed (1 names of several tests)" == counts(found)


def test_a_run_that_exceeds_its_deadline_is_killed_with_its_children(tmp_path):
    """A process that a run started does not survive the deadline."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'], stdin=0)"
    start = time.monotonic()
    command = ["sh", "-c", "sleep 1000 & sleep 1000"]
    assert not finish(command, tmp_path / "output", tmp_path, 0.2, {})
    assert finish([sys.executable, "-c", code], tmp_path / "output", tmp_path, 60, {})
    assert time.monotonic() - start < 100


def test_names_are_unique_and_reasons_are_given():
    """No suite is listed twice, and no expected difference lacks a reason."""
    assert len(ALL) == len(SUITES)
    assert all(why and pattern for suite in ALL for pattern, why in suite.differs)


def test_a_server_that_runs_already_is_refused():
    """The tests of a suite do not use a server that they did not start."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(NotRun, match=f"answers at port {port}"), running(("false",), port):
            pass


def test_a_server_is_waited_for_and_ended(tmp_path):
    """The tests begin when the server accepts connections; one that ends at once is an error."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = f"import socket; socket.create_server(('127.0.0.1', {port})).accept(); input()"
    with running((sys.executable, "-c", code), port):
        pass
    with pytest.raises(NotRun, match="does not answer"), running(("false",), port):
        pass
