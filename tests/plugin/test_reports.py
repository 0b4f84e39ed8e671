"""Results and options of pytest are the same inside as without a sandbox."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

pytestmark = pytest.mark.needs("root")


def test_outcomes_are_the_same_as_without_a_sandbox(run):
    """Passed, failed, skipped, xfailed and xpassed tests are counted as without a sandbox."""
    source = """
    import pytest, unittest

    def test_passes(): pass
    def test_fails(): assert 0
    def test_skips(): pytest.skip("why")
    @pytest.mark.skip(reason="marked")
    def test_skipped(): pass
    @pytest.mark.skipif("True", reason="condition")
    def test_skipped_by_condition(): pass
    @pytest.mark.xfail
    def test_xfails(): assert 0
    @pytest.mark.xfail
    def test_xpasses(): pass
    @pytest.mark.xfail(strict=True)
    def test_xpasses_strictly(): pass
    @pytest.mark.xfail(run=False)
    def test_never_runs(): assert 0
    @pytest.mark.xfail(raises=ValueError)
    def test_raises_another(): raise KeyError("x")
    def test_xfails_by_itself(): pytest.xfail("now")
    @pytest.fixture
    def broken(): raise RuntimeError
    def test_errs(broken): pass
    @pytest.fixture
    def breaking():
        yield
        raise RuntimeError
    def test_breaks(breaking): pass
    @pytest.mark.parametrize("n", range(3))
    def test_parameters(n): assert n != 1

    class TestOld(unittest.TestCase):
        @classmethod
        def setUpClass(cls): cls.made = 1
        def setUp(self): self.own = 2
        def test_passes(self): self.assertEqual(3, self.made + self.own)
        def test_fails(self): self.fail("no")
        @unittest.skip("old")
        def test_skipped(self): pass
        @unittest.expectedFailure
        def test_expected(self): self.fail("yes")
        def test_subtests(self):
            for i in range(3):
                with self.subTest(i=i): self.assertNotEqual(1, i)
    """
    plain = run(source, "-rA", sandbox=False)
    inside = run(source, "-rA")
    assert plain.parseoutcomes() == inside.parseoutcomes()
    assert summary(plain) == summary(inside)


def summary(result):
    lines = result.stdout.lines
    return sorted(
        lines[
            lines.index(
                "=========================== short test summary info ============================"
            )
            + 1 : -1
        ]
    )


@pytest.mark.skipif(
    not hasattr(pytest, "Subtests"), reason="subtests are part of pytest from 9.0 on"
)
def test_failing_subtests_fail_their_test(run):
    """A failed subtest is reported and counted, and fails its test."""
    source = """
    def test(subtests):
        for i in range(3):
            with subtests.test(i=i):
                assert i != 1
    """
    plain, inside = run(source, sandbox=False), run(source)
    assert {"failed": 2} == inside.parseoutcomes() == plain.parseoutcomes()
    inside.stdout.fnmatch_lines(["*contains 1 failed subtest*"])


def test_warnings_are_in_the_summary_and_can_be_errors(run):
    """A warning is listed once, under its test, with its own class; ``-W error`` makes it a
    failure.
    """
    source = """
    import warnings

    class MyWarning(UserWarning): pass

    def test_first(): warnings.warn("first", MyWarning)
    def test_second(): warnings.warn("second", DeprecationWarning)
    """
    result = run(source)
    result.assert_outcomes(passed=2, warnings=2)
    result.stdout.fnmatch_lines(
        ["*::test_first", "*MyWarning: first", "*::test_second", "*DeprecationWarning: second"]
    )
    run(source, "-W", "error").assert_outcomes(failed=2)


def test_warnings_are_not_recorded_without_the_warnings_plugin(run):
    """With ``-p no:warnings`` Python prints a warning, inside as outside."""
    source = "import warnings\ndef test(): warnings.warn('left alone')"
    for sandbox in (False, True):
        result = run(source, "-p", "no:warnings", "-s", sandbox=sandbox)
        assert {"passed": 1} == result.parseoutcomes()
        assert "left alone" in result.stderr.str()


def test_pytest_exit_ends_the_session(run):
    """``pytest.exit()`` in a test ends the session with its message and status, after the teardown
    of all fixtures.
    """
    result = run(
        """
    import pytest
    @pytest.fixture(scope="module")
    def module():
        yield
        print("\\nmodule torn down")
    @pytest.fixture
    def function():
        yield
        open("/dev/tty" if False else 2, "w", closefd=False).write("function torn down")
    def test_first(module, function): pytest.exit("enough", returncode=7)
    def test_second(): pass
    """,
        "-s",
    )
    assert 7 == result.ret
    result.stdout.fnmatch_lines(["*module torn down*", "*Exit: enough*"])
    assert "function torn down" in result.stderr.str()


@pytest.mark.parametrize(("option", "failed"), [("-x", 1), ("--maxfail=2", 2)])
def test_the_session_stops_after_failures(run, option, failed):
    """``-x`` and ``--maxfail`` count failures of tests inside."""
    run(
        "import pytest\n@pytest.mark.parametrize('n', range(5))\ndef test(n): assert 0", option
    ).assert_outcomes(failed=failed)


def test_lf_ff_and_sw_know_what_failed_inside(run, pytester):
    """``--lf``, ``--ff`` and ``--sw`` select tests that have failed inside."""
    source = """
    def test_a(): pass
    def test_b(): assert 0
    def test_c(): pass
    """
    run(source, "-p", "cacheprovider").assert_outcomes(passed=2, failed=1)
    run(source, "--lf").assert_outcomes(failed=1)
    run(source, "--ff", "-v").stdout.fnmatch_lines(["*test_b FAILED*", "*test_a PASSED*"])
    run(source, "--sw").assert_outcomes(passed=1, failed=1)


def test_recorded_properties_are_in_junit_xml(run, pytester):
    """Properties and attributes of tests and of the suite are in junit XML; a value that is not
    data is there as its repr().
    """
    run(
        """
    def test(record_property, record_testsuite_property, record_xml_attribute):
        record_property("odd", {1, })
        record_property("nested", {("a", "b"): object})
        record_testsuite_property("suite", "whole")
        record_xml_attribute("owner", "me")
    """,
        "--junitxml=out.xml",
        "-o",
        "junit_family=xunit1",
    ).assert_outcomes(passed=1, warnings=1)
    root = ET.parse(pytester.path / "out.xml").getroot()
    case = next(root.iter("testcase"))
    values = {one.get("name"): one.get("value") for one in root.iter("property")}
    assert ("{1}", "whole", "me") == (values["odd"], values["suite"], case.get("owner"))
    assert "nested" in values


def test_the_cache_keeps_what_a_test_stores(run, pytester):
    """What a test stores in ``config.cache`` outlives its container."""
    source = """
    def test_stores(request):
        assert request.config.cache.get("mine/value", None) is None
        request.config.cache.set("mine/value", {"a": [1, 2]})
    def test_reads(request): assert {"a": [1, 2]} == request.config.cache.get("mine/value", None)
    """
    run(source).assert_outcomes(passed=2)
    assert (pytester.path / ".pytest_cache/v/mine/value").exists()


def test_durations_are_real(run, reports):
    """Each phase's report, and so ``--durations``, has the time that the phase took inside."""
    result = run(
        """
    import time, pytest
    @pytest.fixture
    def slow(): time.sleep(0.2)
    def test(slow): time.sleep(0.3)
    """,
        "--durations=0",
    )
    result.stdout.fnmatch_lines_random(["*s call *::test", "*s setup *::test"])
    took = {report["when"]: report["duration"] for report in reports()}
    assert 0.2 <= took["setup"]
    assert 0.3 <= took["call"]


def test_setup_only_and_setup_plan_run_no_test(run):
    """``--setup-only`` sets up fixtures inside and ``--setup-plan`` none; neither runs the test."""
    source = "import pytest\n@pytest.fixture\ndef f(): pass\ndef test(f): assert 0"
    result = run(source, "--setup-only")
    assert 0 == result.ret
    result.stdout.fnmatch_lines(["*SETUP    F f*", "*TEARDOWN F f*"])
    assert 0 == run(source, "--setup-plan").ret


def test_doctests_run_inside(run, pytester):
    """Doctests of modules and text files run in containers, and fail as without a sandbox."""
    pytester.maketxtfile(test_text=">>> import os\n>>> os.getppid()\n0\n>>> 1 + 1\n3\n")
    result = run(
        'def f():\n    """\n    >>> import os\n    >>> os.getppid()\n    0\n    """',
        "--doctest-modules",
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["Expected:", "    3", "Got:", "    2"])


def test_makereport_hooks_run_in_both_processes(run, pytester):
    """An attribute that a pytest_runtest_makereport hook sets on the item is there for function
    fixtures inside and for higher fixtures outside.
    """
    pytester.makeconftest("""
        import pytest

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            error = call.excinfo and call.excinfo.typename
            setattr(item, "rep_" + report.when, (report.outcome, error))
            return report

        @pytest.fixture(scope="module")
        def outer(request):
            yield
            (item,) = request.session.items
            assert ("failed", "ZeroDivisionError") == item.rep_call
            print("outer has seen it")

        @pytest.fixture
        def inner(request):
            yield
            assert ("failed", "ZeroDivisionError") == request.node.rep_call
            print("inner has seen it")
    """)
    result = run("def test(outer, inner): 1 / 0", "-rA", "-s")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*inner has seen it*", "*outer has seen it*"])


def test_a_section_that_a_hook_adds_is_there_once(run, pytester):
    """The report has what a makereport hook has added in the test process, and nothing from the
    hook in the parent.
    """
    pytester.makeconftest("""
        import pytest

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            if report.when == "call":
                report.sections.append(("added", str(item.funcargs.get("value"))))
            return report
    """)
    result = run(
        "import pytest\n@pytest.fixture\ndef value(): return 'inner'\ndef test(value): assert 0"
    )
    assert 1 == sum(line.strip("- ") == "added" for line in result.stdout.lines)
    assert "inner" in result.stdout.lines


@pytest.mark.parametrize("options", [(), ("--sandbox-scope=module",), ("--sandbox-fresh",)])
def test_a_report_shows_no_frames_of_this_plugin(run, reports, options):
    """The text of a failure is that outside, also if all frames are those of pytest."""
    source = """
    import pytest, unittest
    @pytest.fixture
    def fails(request): request.getfixturevalue("no_such_fixture")
    @pytest.fixture
    def unfinished():
        yield
        yield
    @pytest.fixture(scope="module")
    def of_module():
        yield
        raise ValueError("module")
    @pytest.mark.xfail(run=False, reason="why")
    def test_not_run(): pass
    class TestCase(unittest.TestCase):
        @pytest.mark.parametrize("name", [1])
        def test_parametrized(self): pass
    def test_setup(fails): pass
    def test_teardown(unfinished): pass
    def test_last(of_module): pass
    """
    run(source, "--tb=short", sandbox=False)
    run(source, "--tb=short", *options)
    found = [(one["test"], one["when"], one["outcome"], one["text"]) for one in reports()]
    outside, inside = found[: len(found) // 2], found[len(found) // 2 :]
    assert outside == inside
    assert any("[NOTRUN] why" in one[3] for one in inside)
