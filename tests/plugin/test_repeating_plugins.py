"""Plugins that repeat tests, or run their phases themselves: the results are the plain ones."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.needs("root")

RETRIED = """
import os, pathlib
import pytest

def run(counter):
    made = counter / str(len(os.listdir(counter)))
    made.touch()
    return len(os.listdir(counter))

@pytest.fixture(scope="session")
def counter(): return pathlib.Path("COUNTER")

@pytest.mark.container(volumes=["COUNTER:COUNTER:rw"])
@MARK
def test_passes_at_the_third_try(counter):
    pathlib.Path("/opt/only-once").touch(exist_ok=False)
    assert 3 == run(counter)

@MARK
def test_always_fails():
    assert "this" == "that"

@MARK
def test_setup_fails(missing): pass

@MARK
def test_passes(): pass

@MARK
def test_skips(): pytest.skip("no")

@pytest.mark.xfail
def test_expected(): assert 0

def test_unmarked_fails(): assert 3 == 4
"""


@pytest.mark.parametrize(
    ("plugin", "mark", "again"),
    [
        ("pytest_retry.retry_plugin", "pytest.mark.flaky(retries=3)", "retried"),
        ("pytest_rerunfailures", "pytest.mark.flaky(reruns=3)", "rerun"),
        ("flaky.flaky_pytest_plugin", "pytest.mark.flaky(max_runs=4)", None),
    ],
    ids=["retry", "rerunfailures", "flaky"],
)
def test_a_failure_is_repeated_in_a_fresh_container(run, tmp_path, plugin, mark, again):
    """Each try has a container of its own; a test that passes at the third try passes, one that
    never does fails once, with its own exception, and the session fails.
    """
    pytest.importorskip(plugin.partition(".")[0])
    source = RETRIED.replace("COUNTER", str(tmp_path)).replace("MARK", mark)
    result = run(source, "--tb=short", plugins=(plugin,))
    outcomes = result.parseoutcomes()
    if again is not None:
        outcomes.pop(again)
    assert {"passed": 2, "failed": 2, "errors": 1, "skipped": 1, "xfailed": 1} == outcomes
    assert 1 == result.ret
    result.stdout.fnmatch_lines(["E * assert 'this' == 'that'*", "E * assert 3 == 4"])
    assert ["0", "1", "2"] == sorted(path.name for path in tmp_path.iterdir())


def test_a_repeated_test_has_a_container_each_time(run):
    """pytest-repeat runs each repetition in a container of its own, and reports each."""
    pytest.importorskip("pytest_repeat")
    run(
        """
    import pathlib
    def test_pass(): pathlib.Path("/opt/only-once").touch(exist_ok=False)
    def test_fail(): assert 0
    """,
        "--count=3",
        plugins=("pytest_repeat",),
    ).assert_outcomes(passed=3, failed=3)


PROTOCOL = """
import pytest

def pytest_runtest_protocol(item, nextitem):
    hook = item.ihook
    call = None
    for name, when, arguments in (
        ("pytest_runtest_setup", "setup", {}),
        ("pytest_runtest_call", "call", {}),
        ("pytest_runtest_teardown", "teardown", {"nextitem": nextitem}),
    ):
        call = pytest.CallInfo.from_call(
            lambda: getattr(hook, name)(item=item, **arguments), when=when
        )
        report = pytest.TestReport.from_item_and_call(item, call)
        hook.pytest_runtest_logreport(report=report)
        if when == "setup" and call.excinfo: break
    return True
"""


def test_a_protocol_that_makes_no_reports_by_hooks(run, pytester):
    """A protocol that only looks at the exceptions of the phases sees those of the test, and
    reports their text.
    """
    pytester.makeconftest(PROTOCOL)
    result = run("""
    import os, pytest
    @pytest.fixture
    def broken():
        yield
        raise OSError("teardown")
    def test_pass(): assert 0 == os.getppid()
    def test_fail():
        value = [1, 2]
        assert value == [1, 3]
    def test_crash(): os._exit(0)
    def test_teardown(broken): pass
    """)
    assert {"passed": 2, "failed": 2, "errors": 1} == result.parseoutcomes()
    result.stdout.fnmatch_lines(
        [
            "OSError: teardown",
            "E * assert [[]1, 2] == [[]1, 3]*",
            "*ended with status 0 before the test was over*",
        ]
    )
