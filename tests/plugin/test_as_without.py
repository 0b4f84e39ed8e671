"""What users of pytest rely on is the same inside as outside."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET

import pytest

pytestmark = pytest.mark.needs("root")


def test_every_outcome_is_the_one_without_a_sandbox(run):
    """Passed, failed, error, skipped, xfailed, xpassed, and failing subtests are counted as pytest
    counts them.
    """
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
    """A failed subtest is reported and counted, and so is the test that contains it."""
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
    """A warning of a test inside is listed once under its test; ``-W error`` makes it a failure; a
    class of the test's own travels.
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


def test_warnings_are_left_alone_without_their_plugin(run):
    """``-p no:warnings`` leaves them to Python, inside as outside."""
    source = "import warnings\ndef test(): warnings.warn('left alone')"
    for sandbox in (False, True):
        result = run(source, "-p", "no:warnings", "-s", sandbox=sandbox)
        assert {"passed": 1} == result.parseoutcomes()
        assert "left alone" in result.stderr.str()


def test_the_session_ends_where_a_test_wants_it(run):
    """``pytest.exit`` in a body ends the session with its message and status; the fixtures are torn
    down.
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
    """``-x`` and ``--maxfail`` count failures inside."""
    run(
        "import pytest\n@pytest.mark.parametrize('n', range(5))\ndef test(n): assert 0", option
    ).assert_outcomes(failed=failed)


def test_the_last_failures_come_first(run, pytester):
    """``--lf``, ``--ff`` and ``--sw`` know what failed inside."""
    source = """
    def test_a(): pass
    def test_b(): assert 0
    def test_c(): pass
    """
    run(source, "-p", "cacheprovider").assert_outcomes(passed=2, failed=1)
    run(source, "--lf").assert_outcomes(failed=1)
    run(source, "--ff", "-v").stdout.fnmatch_lines(["*test_b FAILED*", "*test_a PASSED*"])
    run(source, "--sw").assert_outcomes(passed=1, failed=1)


def test_what_is_recorded_arrives(run, pytester):
    """Properties and attributes of tests and of the suite reach junit; a value that JSON lacks
    arrives as its repr.
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
    """``request.config.cache`` outlives the container."""
    source = """
    def test_stores(request):
        assert request.config.cache.get("mine/value", None) is None
        request.config.cache.set("mine/value", {"a": [1, 2]})
    def test_reads(request): assert {"a": [1, 2]} == request.config.cache.get("mine/value", None)
    """
    run(source).assert_outcomes(passed=2)
    assert (pytester.path / ".pytest_cache/v/mine/value").exists()


@pytest.mark.parametrize("capture", ["fd", "sys", "no"])
def test_output_is_captured_as_without(run, capture):
    """capsys, capfd, caplog and captured sections hold a test's own output, its subprocesses' too;
    ``-s`` lets it through.
    """
    result = run(
        """
    import logging, os, subprocess, sys, pytest

    @pytest.fixture(scope="module")
    def module(): print("from the module")

    def test_capsys(capsys):
        print("one")
        assert "one\\n" == capsys.readouterr().out
    def test_capfd(capfd):
        subprocess.run(["echo", "two"])
        assert "two\\n" == capfd.readouterr().out
    def test_caplog(caplog):
        logging.getLogger("x").warning("three")
        assert ["three"] == caplog.messages
    def test_recwarn(recwarn):
        import warnings
        warnings.warn("four")
        assert 1 == len(recwarn)
    def test_shows(module):
        print("five"); print("six", file=sys.stderr); logging.warning("seven"); os.system("echo eight")
        assert 0
    """,
        f"--capture={capture}",
    )
    result.assert_outcomes(passed=4, failed=1)
    if capture == "fd":
        result.stdout.fnmatch_lines(
            [
                "*stdout setup*",
                "from the module",
                "*stdout call*",
                "five",
                "eight",
                "*stderr call*",
                "six",
                "*log call*",
                "*seven",
            ]
        )
    assert 1 == result.stdout.str().count("from the module")
    assert 1 == sum(line == "five" for line in result.stdout.lines)


def test_what_was_made_before_the_test_can_be_found(run):
    """The collector knows all objects, as libraries and tests that look for referrers expect."""
    result = run("""
    import gc
    made = [object()]
    def test():
        assert 0 == gc.get_freeze_count()
        assert made in gc.get_referrers(made[0])
        assert any(one is made for one in gc.get_objects())
    """)
    result.assert_outcomes(passed=1)


def test_random_goes_on_from_its_seed(run):
    """A seed that a fixture of a higher scope chose is the body's, as in one process."""
    run("""
    import random, pytest
    @pytest.fixture(scope="session", autouse=True)
    def seeded(): random.seed(42)
    def test(): assert random.Random(42).random() == random.random()
    """).assert_outcomes(passed=1)


def test_a_higher_fixture_is_made_once_and_outside_also_where_it_is_overridden(run, pytester):
    """A fixture of function scope may take what it overrides, level by level: the session's own is
    made in the parent, the others inside.
    """
    pytester.makeconftest("""
    import os, pytest
    @pytest.fixture(scope="session")
    def server(): return [os.getppid() != 0]
    """)
    run("""
    import os, pytest

    @pytest.fixture
    def server(server): return [*server, "module", os.getppid()]

    class TestThem:
        @pytest.fixture
        def server(self, server): return [*server, "class", os.getppid()]

        def test_a(self, server): assert [True, "module", 0, "class", 0] == server
        def test_b(self, server): self.test_a(server)

    def test_c(server): assert [True, "module", 0] == server
    """).assert_outcomes(passed=3)


def test_higher_scopes_are_made_once_and_outside(run, pytester):
    """Session, package, module and class fixtures are set up and torn down once, in the parent;
    function scope is inside.
    """
    log = pytester.path / "log"
    run(f"""
    import os, pytest

    def say(*words):
        with open({str(log)!r}, "a") as file: print(*words, file=file)

    def fixture(scope):
        @pytest.fixture(scope=scope, autouse=True)
        def made():
            say("up", scope, os.getppid() != 0)
            yield scope
            say("down", scope, os.getppid() != 0)
        return made

    session, module, class_ = fixture("session"), fixture("module"), fixture("class")

    @pytest.fixture(params=["x", "y"], scope="module")
    def parameter(request):
        say("up", request.param)
        yield request.param
        say("down", request.param)

    @pytest.fixture
    def function():
        assert os.getppid() == 0
        yield
        assert os.getppid() == 0

    class TestThem:
        def test_a(self, session, function): assert "session" == session
        def test_b(self, module): assert "module" == module
        def test_c(self, parameter): assert parameter in "xy"
    """).assert_outcomes(passed=4)
    lines = log.read_text().splitlines()
    assert ["up session True", "up module True", "up class True"] == lines[:3]
    assert ["up x", "down x", "up y"] == [line for line in lines if line[-1] in "xy"][:3]
    assert sorted(line.replace("up", "down") for line in lines if line.startswith("up")) == sorted(
        line for line in lines if line.startswith("down")
    )
    assert 1 == sum(line.startswith("up session") for line in lines)


def test_xunit_style_functions_keep_their_scopes(run):
    """setup_module and setup_class run outside and once, setup_method and setup_function inside."""
    run("""
    import os
    outside = []
    def setup_module(): outside.append(os.getppid())
    def setup_function(): assert 0 == os.getppid()
    class TestIt:
        @classmethod
        def setup_class(cls): cls.made = os.getpid()
        def setup_method(self): assert 0 == os.getppid()
        def test_a(self): assert outside != [0] and self.made
        def test_b(self): assert 1 == len(outside)
    def test_c(): pass
    """).assert_outcomes(passed=3)


def test_a_higher_fixture_that_was_asked_for_too_late_is_named(run):
    """A session fixture that only ``getfixturevalue`` names is made inside, for one test, and a
    warning says so.
    """
    result = run("""
    import pytest
    @pytest.fixture(scope="session")
    def expensive(): return 1
    def test(request): assert 1 == request.getfixturevalue("expensive")
    """)
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(
        ["*session-scoped fixture 'expensive' was set up in the container of this test alone*"]
    )


def test_a_conftest_sees_reports_in_both_places(run, pytester):
    """``rep_call``, hung on the item in pytest_runtest_makereport, is there for function fixtures
    inside and for higher ones outside.
    """
    pytester.makeconftest("""
        import pytest

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            setattr(item, "rep_" + report.when, (report.outcome, call.excinfo and call.excinfo.typename))
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


def test_what_a_hook_adds_to_a_report_is_added_once(run, pytester):
    """Hooks run on both sides, and the report has what they made of it inside."""
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


def test_doctests_are_inside(run, pytester):
    """A doctest of a module or a text file runs in a container, and fails as without."""
    pytester.maketxtfile(test_text=">>> import os\n>>> os.getppid()\n0\n>>> 1 + 1\n3\n")
    result = run(
        'def f():\n    """\n    >>> import os\n    >>> os.getppid()\n    0\n    """',
        "--doctest-modules",
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["Expected:", "    3", "Got:", "    2"])


def test_paths_and_patches_are_a_tests_own(run):
    """tmp_path is there and empty, monkeypatch undoes, cwd, environment, umask, locale, signals and
    builtins of one test are not the next one's.
    """
    run("""
    import builtins, locale, os, pathlib, signal, sys

    def test_changes(tmp_path, monkeypatch):
        (tmp_path / "x").write_text("1")
        monkeypatch.setenv("A", "1")
        os.environ["B"] = "1"
        os.chdir("/")
        os.umask(0o777)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        builtins.open = None
        sys.path.clear()
        sys.modules.pop("json", None)
        pathlib.Path("/tmp/left").touch()

    def test_finds_nothing_of_it(tmp_path):
        assert [] == list(tmp_path.iterdir())
        assert "/" != os.getcwd()
        assert not {"A", "B"} & os.environ.keys()
        assert 0o777 != os.umask(0o22)
        assert set() == signal.pthread_sigmask(signal.SIG_BLOCK, [])
        assert signal.SIG_DFL == signal.getsignal(signal.SIGUSR2)
        assert open("/proc/self/comm")
        assert sys.path and "json" in sys.modules
        assert not pathlib.Path("/tmp/left").exists()
    """).assert_outcomes(passed=2)


def test_a_file_that_a_higher_fixture_made_is_there(run):
    """What a module fixture writes on the host after the container was made ahead is seen inside,
    and cannot be changed from there.
    """
    run("""
    import pytest

    @pytest.fixture(scope="module")
    def file(tmp_path_factory):
        path = tmp_path_factory.mktemp("shared") / "file"
        path.write_text("outer")
        yield path
        assert "outer" == path.read_text()

    def test_before(): pass
    def test_reads(file):
        assert "outer" == file.read_text()
        file.write_text("inner")
    def test_reads_again(file): assert "outer" == file.read_text()
    """).assert_outcomes(passed=3)


def test_durations_are_real(run, reports):
    """Each phase's report, and so ``--durations``, says how long it took inside."""
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


def test_setup_only_and_plan_run_no_body(run):
    """``--setup-only`` sets up inside and runs nothing else."""
    source = "import pytest\n@pytest.fixture\ndef f(): pass\ndef test(f): assert 0"
    result = run(source, "--setup-only")
    assert 0 == result.ret
    result.stdout.fnmatch_lines(["*SETUP    F f*", "*TEARDOWN F f*"])
    assert 0 == run(source, "--setup-spec").ret


class Terminal:
    """A run of pytest with a terminal of its own."""

    def __init__(self, *arguments):
        ours, theirs = os.openpty()
        command = [sys.executable, "-m", "pytest", "-p", "sandbox", "--sandbox", *arguments]
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        self.fd = ours
        self.text = ""

    def expect(self, what, seconds=60):
        end = time.monotonic() + seconds
        while what not in self.text:
            assert select.select([self.fd], [], [], max(0, end - time.monotonic()))[0], self.text
            try:
                self.text += os.read(self.fd, 4096).decode(errors="replace")
            except OSError:
                break
        assert what in self.text, self.text
        self.text = self.text.partition(what)[2]

    def type(self, line):
        os.write(self.fd, line.encode() + b"\n")

    def end(self, status):
        assert status == self.process.wait(60)
        os.close(self.fd)


def test_the_debugger_has_the_terminal(run, pytester):
    """``--pdb`` and ``breakpoint()`` work inside, with the test's own frame, and no timeout ends
    them.
    """
    pytester.makepyfile("""
    import os, time
    def test_breaks():
        here = os.getppid()
        breakpoint()
    def test_fails():
        there = "in" + "side"
        assert 0
    """)
    terminal = Terminal("--pdb", "--sandbox-timeout=2")
    terminal.expect("(Pdb) ")
    terminal.type("p 'parent', here")
    terminal.expect("('parent', 0)")
    terminal.type("import time; time.sleep(3)")
    terminal.type("c")
    terminal.expect("(Pdb) ")
    terminal.type("p there")
    terminal.expect("'inside'")
    terminal.type("q")
    terminal.expect("1 failed, 1 passed")
    terminal.process.wait(60)


@pytest.mark.needs("pgrep")
def test_ctrl_c_ends_the_session_with_its_containers(run, pytester):
    """An interrupt while a test runs inside ends the session as without, and leaves nothing
    running.
    """
    pytester.makepyfile("""
    import subprocess
    def test_waits():
        print("it waits", flush=True)
        subprocess.run(["sleep", "313233"])
    """)
    terminal = Terminal("-s")
    terminal.expect("it waits")
    os.kill(terminal.process.pid, signal.SIGINT)
    terminal.expect("KeyboardInterrupt")
    terminal.end(2)
    assert (
        ""
        == subprocess.run(
            ["pgrep", "-f", "sleep 313233"], check=False, capture_output=True, text=True
        ).stdout
    )
