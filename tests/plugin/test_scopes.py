"""``scope=``: the tests of a class or a module share a container, a process and its fixtures."""

from __future__ import annotations

import ast
import itertools
import os
import time

import pytest

from pytest_sandbox.plugin.report_channel import ReportChannel

pytestmark = pytest.mark.needs("root")

MODULE = """
import os, pytest
log = []

@pytest.fixture(scope="session")
def outside(): return os.getppid() != 0

@pytest.fixture(scope="module", autouse=True)
def inside():
    log.append(os.getppid() == 0)
    yield

@pytest.fixture(scope="class")
def of_class(): log.append("class")
"""

SHARED = "--sandbox-scope=module"


def test_tests_of_a_module_share_memory_files_and_fixtures(run):
    """The tests of a module see each other's memory and files; the module's fixture is created
    once, inside; a session fixture that a later test needs arrives from outside.
    """
    run(
        MODULE
        + """
def test_a(): log.append("a"); open("/etc/shared", "w").close()
def test_b(outside): assert (outside, log) == (True, [True, "a"])
class TestThem:
    def test_c(self, of_class): assert os.path.exists("/etc/shared")
    def test_d(self, of_class): assert log == [True, "a", "class"]
""",
        SHARED,
    ).assert_outcomes(passed=4)


def test_each_test_has_its_own_report(run, reports):
    """Output, properties, CPU time and failures are those of each test, and the exception of a
    later test has no context.
    """
    run(
        MODULE
        + """
import os
import time
def test_busy():
    print("busy")
    end = time.process_time() + 0.3
    while time.process_time() < end: pass
def test_idle(record_property): record_property("own", 1); print("idle"); assert 0
def test_last(): print("last")
""",
        SHARED,
    ).assert_outcomes(passed=2, failed=1)
    busy, idle, last = [one for one in reports() if one["when"] == "call"]
    assert busy["properties"]["container.id"] == last["properties"]["container.id"]
    assert busy["properties"]["container.cpu_seconds"] > idle["properties"]["container.cpu_seconds"]
    assert "own" in idle["properties"]
    assert "own" not in last["properties"]
    assert ["busy\n", "idle\n", "last\n"] == [
        dict(one["sections"])["Captured stdout call"] for one in (busy, idle, last)
    ]
    assert "During handling" not in idle["text"]
    assert "1 tests ran in this container before" in dict(idle["sections"])["shared container"]


@pytest.mark.parametrize(
    ("end", "text"),
    [
        ("os._exit(3)", "ended with status 3"),
        ("os.kill(os.getpid(), 9)", "SIGKILL"),
        ("__import__('signal').pause()", "timeout: still running after 0.5 s"),
    ],
)
def test_the_scope_continues_after_a_crash(run, failed_report, end, text):
    """A test that crashes or times out is reported; later tests get a new container with new
    fixtures, and the report says so.
    """
    run(
        MODULE
        + f"""
def test_a(): log.append("a")
@pytest.mark.container(timeout=0.5)
def test_b(): {end}
def test_c(): assert log == [True]
""",
        SHARED,
    ).assert_outcomes(passed=2, failed=1)
    assert text in failed_report()["text"]
    assert "Later tests of the module run in a new container." in failed_report()["text"]


@pytest.mark.parametrize("options", [("-x",), ("--maxfail=1",), ("--stepwise",)])
def test_a_failure_that_ends_the_session_tears_down_the_scope(run, options):
    """With -x, --maxfail and --stepwise no later test runs, and a failure of the module fixture's
    teardown is an error of the last test.
    """
    result = run(
        """
import os, pytest
@pytest.fixture(scope="module", autouse=True)
def inside():
    yield
    assert os.getppid() != 0, "torn down inside"
def test_a(): pass
def test_b(): assert 0
def test_c(): pass
""",
        SHARED,
        *options,
    )
    result.assert_outcomes(passed=1, failed=1, errors=1)
    result.stdout.fnmatch_lines(["*torn down inside*"])


def test_a_failed_teardown_of_the_scope_is_an_error(run):
    """An exception in the teardown of a module fixture is an error of the module's last test."""
    run(
        """
import os
import time

import pytest

from pytest_sandbox.plugin.report_channel import ReportChannel
@pytest.fixture(scope="module", autouse=True)
def inside():
    yield
    raise OSError
def test_a(): pass
def test_b(): pass
""",
        SHARED,
    ).assert_outcomes(passed=2, errors=1)


def test_a_rerun_uses_the_same_process(run):
    """A test that rerunfailures repeats sees what the tests before it have done."""
    pytest.importorskip("pytest_rerunfailures")
    run(
        MODULE
        + """
def test_a(): log.append("a")
def test_b():
    log.append("b")
    assert log == [True, "a", "b", "b"]
def test_c(): assert log == [True, "a", "b", "b"]
""",
        SHARED,
        "--reruns=1",
        plugins=("rerunfailures",),
    ).assert_outcomes(passed=3)


def test_a_test_with_other_settings_has_its_own_container(run):
    """A test outside, or with a limit of its own, does not share the scope's container."""
    run(
        MODULE
        + """
def test_a(): log.append("a")
@pytest.mark.container(memory="256m")
def test_b(): assert log == [True]
def test_c(): assert log == [True]
@pytest.mark.no_sandbox
def test_d(): assert log == [False]
def test_e(): assert log == [False, True]
@pytest.mark.container(scope="function")
def test_f(): assert log == [False, False]
""",
        "-o",
        "sandbox_scope=module",
    ).assert_outcomes(passed=6)


def test_parameters_of_a_wider_fixture_split_the_scope(run):
    """Tests with another parameter of a session fixture run in a new container."""
    run(
        MODULE
        + """
@pytest.fixture(scope="session", params=["x", "y"])
def wide(request): return request.param, os.getppid() != 0
def test_a(wide): log.append(wide)
def test_b(wide): assert log == [True, wide] and wide[1]
""",
        SHARED,
    ).assert_outcomes(passed=4)


def test_a_class_marked_with_a_scope(run):
    """The mark on a class makes its tests share a container, with unittest's class setup inside."""
    run("""
import os, pytest, unittest
@pytest.mark.container(scope="class")
class TestThem(unittest.TestCase):
    @classmethod
    def setUpClass(cls): cls.inside, cls.seen = os.getppid() == 0, []
    def test_a(self): self.seen.append("a"); assert self.inside
    def test_b(self): assert self.seen == ["a"]
def test_c(): assert not hasattr(TestThem, "inside")
""").assert_outcomes(passed=3)


def test_warnings_and_exit(run):
    """Warnings of each test are announced once, and pytest.exit() ends the session."""
    result = run(
        """
import warnings, pytest
def test_a(): warnings.warn("from a")
@pytest.mark.filterwarnings("error")
def test_b(): pass
def test_c(): warnings.warn("from c")
def test_d(): pytest.exit("enough", 7)
def test_e(): pass
""",
        SHARED,
    )
    result.assert_outcomes(passed=3, warnings=2)
    assert 7 == result.ret


def test_xdist_runs_a_scope_on_one_worker(run):
    """With --dist=loadscope, the tests of a module share a container of one worker."""
    pytest.importorskip("xdist")
    run(
        MODULE + "def test_a(): log.append(1)\ndef test_b(): assert log == [True, 1]\n",
        SHARED,
        "-n1",
        "--dist=loadscope",
        plugins=("xdist",),
    ).assert_outcomes(passed=2)


def test_coverage_of_all_tests_of_a_scope(run, pytester):
    """Coverage has the lines of each test, also of those before a crash."""
    pytest.importorskip("pytest_cov")
    pytester.makepyfile(shop="def a():\n    return 1\ndef b():\n    return 2\n")
    result = run(
        "import os, shop\n"
        "def test_a(): shop.a()\ndef test_b(): shop.b()\ndef test_c(): os._exit(0)\n",
        SHARED,
        "--cov=shop",
        "--cov-report=term-missing",
        plugins=("pytest_cov",),
    )
    result.stdout.fnmatch_lines(["shop.py*100%*"])


@pytest.mark.parametrize(
    ("source", "options", "text"),
    [
        ("def test_a(): pass", ["--sandbox-scope=file"], "--sandbox-scope: scope='file': expected"),
        (
            "import pytest\n@pytest.mark.container(scope='module')\ndef test_a(): pass",
            [],
            "is set on a single test",
        ),
    ],
)
def test_a_wrong_scope_is_a_usage_error(run, source, options, text):
    """A scope that does not exist, or on a single test, is rejected at collection."""
    result = run(source, *options)
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    assert text in result.stderr.str()


def test_changes_are_those_of_the_test(run, failed_report):
    """The section "changes" of a failed test has no file of an earlier test of the scope."""
    run(
        """
import os
import time
def test_a(): open("/etc/first", "w").close(); open("/etc/second", "w").close(); time.sleep(0.1)
def test_b():
    open("/etc/second", "a").write("more")
    open("/etc/third", "w").close()
    assert 0
""",
        SHARED,
    ).assert_outcomes(passed=1, failed=1)
    lines = failed_report()["sections"]["changes"].splitlines()
    assert {"A /etc/second", "A /etc/third"} <= set(lines)
    assert "A /etc/first" not in lines


def test_reports_arrive_while_the_scope_runs(run, pytester):
    """The first test's report is there while the second one runs, and Ctrl-C then ends the session:
    the running test is interrupted, the fixtures of the scope are torn down inside.
    """
    pytester.makeconftest(
        """
import os, signal, threading, time
def pytest_runtest_logreport(report):
    if report.when == "teardown" and "test_a" in report.nodeid:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
"""
    )
    start = time.monotonic()
    result = run(
        """
import os, time, pytest
@pytest.fixture(scope="module", autouse=True)
def inside(pytestconfig):
    yield
    pytestconfig.cache.set("x/ended", os.getppid() == 0)
def test_a(): pass
def test_b(): time.sleep(30)
def test_c(): pass
""",
        SHARED,
    )
    assert time.monotonic() - start < 20
    assert pytest.ExitCode.INTERRUPTED == result.ret
    result.stdout.fnmatch_lines(["*KeyboardInterrupt*", "*1 passed*"])
    assert "true" in (pytester.path / ".pytest_cache/v/x/ended").read_text()


MODULES = """
import os, time
seen = []
def test_a(): seen.append("a"); time.sleep(0.8)
def test_b(): assert seen == ["a"]; seen.append("b"); time.sleep(0.8)
def test_c(tmp_path): (tmp_path / "x").touch(); assert seen == ["a", "b"]
"""


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_jobs_run_scopes_in_parallel(run, pytester, reports, jobs):
    """Modules run at the same time with jobs; the tests of one, one after the other, in order."""
    for name in ("test_1", "test_2", "test_3"):
        pytester.makepyfile(**{name: MODULES})
    pytester.makeini("[pytest]\nsandbox_jobs_hooks = conftest.py")
    result = run(MODULES, SHARED, f"--sandbox-jobs={jobs}")
    result.assert_outcomes(passed=12)
    calls = [one for one in reports() if one["when"] == "call"]
    assert ["test_a", "test_b", "test_c"] * 4 == [one["test"] for one in calls]
    assert 4 == len({one["properties"]["container.id"] for one in calls})
    modules = sorted((calls[n]["start"], calls[n + 2]["stop"]) for n in range(0, 12, 3))
    overlap = [later[0] < earlier[1] for earlier, later in itertools.pairwise(modules)]
    assert any(overlap) == (jobs > 1)


def test_jobs_with_a_crash_a_failure_and_a_session_fixture(run):
    """A crash ahead of its turn ends its container only; a failed test's scope goes on at its turn;
    a scope that needs a session fixture starts when that is set up.
    """
    run(
        MODULE
        + """
class TestCrash:
    def test_a(self): log.append("x")
    def test_b(self): os._exit(3)
    def test_c(self): assert "x" not in log
class TestFail:
    def test_a(self): log.append("y")
    def test_b(self): assert 0
    def test_c(self): assert "y" in log
class TestOutside:
    def test_a(self, outside): log.append("z")
    def test_b(self, outside): assert "z" in log and outside
""",
        "--sandbox-scope=class",
        "--sandbox-jobs=4",
    ).assert_outcomes(passed=6, failed=2)


def test_jobs_discard_a_scope_after_the_first_failure(run):
    """With -x, what later scopes have done is not reported."""
    run(
        """
import os
import time
class TestA:
    def test_a(self): time.sleep(0.5)
    def test_b(self): assert 0
class TestB:
    def test_a(self): pass
    def test_b(self): pass
""",
        "--sandbox-scope=class",
        "--sandbox-jobs=4",
        "-x",
    ).assert_outcomes(passed=1, failed=1)


def test_jobs_with_a_module_fixture_of_a_test_outside(run):
    """A scope in which a test stays outside does not use the fixtures of the parent."""
    run(
        MODULE
        + """
def test_a(): assert log == [True]; log.append("a")
@pytest.mark.no_sandbox
def test_b(): assert log == [False]
def test_c(): assert log[-1] is True; log.append("c")
def test_d(): assert log[-2:] == [True, "c"]
""",
        SHARED,
        "--sandbox-jobs=4",
    ).assert_outcomes(passed=4)


@pytest.mark.parametrize("jobs", [1, 3])
def test_random_order_enters_a_scope_several_times(run, pytester, jobs):
    """Tests of a class that do not follow each other do not share a container."""
    pytester.makeconftest(
        "import random\ndef pytest_collection_modifyitems(items): random.Random(5).shuffle(items)\n"
    )
    one = "".join(f"    def test_{i}(self): log.append(type(self).__name__)\n" for i in range(5))
    last = "    def test_last(self): assert set(log) <= {type(self).__name__}\n"
    result = run(
        "log = []\n" + "".join(f"class Test{name}:\n{one}{last}" for name in "ABC"),
        "--sandbox-scope=class",
        f"--sandbox-jobs={jobs}",
    )
    result.assert_outcomes(passed=18)


def test_skips_of_marks_and_hooks(run, pytester):
    """Tests skipped by a mark, by a hook of the conftest, and inside; the one after each runs."""
    pytester.makeconftest(
        """
import os, pytest
def pytest_runtest_setup(item):
    if "hooked" in item.name: pytest.skip("by a hook")
    if "parent" in item.name and os.getppid() != 0: pytest.skip("in the parent only")
"""
    )
    run(
        MODULE
        + """
def test_a(): log.append("a")
@pytest.mark.skip
def test_b(): log.append("b")
def test_c_hooked(): log.append("c")
def test_d(): log.append("d"); pytest.skip("inside")
@pytest.mark.skipif("True")
def test_e(): pass
def test_f(): assert log == [True, "a", "d"]
def test_parent(): pass
def test_g(): assert log[:3] == [True, "a", "d"]
@pytest.mark.xfail(strict=True)
def test_h(): assert 0
def test_i(): assert log[:3] == [True, "a", "d"]
""",
        SHARED,
    ).assert_outcomes(passed=4, skipped=5, xfailed=1)


def test_oom_kill_of_one_test(run, failed_report):
    """A test that is killed for memory is reported so, and the next one runs in a new container."""
    run(
        MODULE
        + """
def test_a(): log.append("a")
def test_b(): bytearray(200 << 20)
def test_c(): assert log == [True]
""",
        SHARED,
        "--sandbox-memory=100m",
    ).assert_outcomes(passed=2, failed=1)
    assert "memory" in failed_report()["text"]


def test_timeout_is_per_test(run):
    """The limit holds for each test, not for the scope."""
    run(
        "import time\n" + "".join(f"def test_{i}(): time.sleep(0.4)\n" for i in range(4)),
        SHARED,
        "--sandbox-timeout=1",
    ).assert_outcomes(passed=4)


@pytest.mark.parametrize("plugin", ["flaky.flaky_pytest_plugin", "pytest_rerunfailures"])
def test_plugins_that_run_the_protocol(run, plugin):
    """A plugin with a protocol of its own sees each test; a mark repeats one."""
    pytest.importorskip(plugin)
    mark = (
        "@pytest.mark.flaky(max_runs=3)" if "flaky_" in plugin else "@pytest.mark.flaky(reruns=3)"
    )
    run(
        MODULE
        + f"""
def test_a(): log.append("a")
{mark}
def test_b():
    log.append("b")
    assert log.count("b") == 2
def test_c(): assert log[:2] == [True, "a"]
""",
        SHARED,
        plugins=(plugin,),
    ).assert_outcomes(passed=3)


def test_functions_that_an_earlier_test_has_replaced(run):
    """A test that replaces functions for good does not change how later ones are reported."""
    run(
        """
import os, time, json, select
def test_a():
    os.write = os.read = os.getpid = json.dumps = time.time = select.poll = None
def test_b(): pass
def test_c(): assert 0
""",
        SHARED,
    ).assert_outcomes(passed=2, failed=1)


def test_a_failed_test_whose_process_ends_before_the_next_turn(run, pytester):
    """The next test of the scope does not fail for it: a thread of the one before ends it."""
    pytester.makeconftest(
        """
import os, time
def pytest_runtest_logreport(report):
    if report.failed and os.getppid() != 0: time.sleep(1)
"""
    )
    result = run(
        """
import os, threading
def test_a():
    threading.Timer(0.3, os._exit, [3]).start()
    assert 0
def test_b(): assert os.getppid() == 0
""",
        SHARED,
    )
    result.assert_outcomes(passed=1, failed=1, errors=1)
    result.stdout.fnmatch_lines(["*were not torn down: the process ended*"])


def test_read_messages_take_no_memory():
    """The memory of messages that were read is freed, and later ones are there."""
    channel = ReportChannel(is_shared=True)
    try:
        os.write(channel.file, b"x" * (3 << 20))
        before = os.fstat(channel.file).st_blocks
        channel.offset = (2 << 20) + 5
        channel.free_read()
        assert os.fstat(channel.file).st_blocks <= before - (2 << 20) // 512
        os.write(channel.file, b"later")
        assert b"xlater" == os.pread(channel.file, 6, (3 << 20) - 1)
        assert b"x" == os.pread(channel.file, 1, channel.offset)
    finally:
        channel.close_both_ends()


WHAT_TESTS_USE = """
import gc, unittest, weakref, pytest
gc.disable()
used, seen = {}, []

class Thing: pass

def use(name):
    thing = Thing()
    used[name] = weakref.ref(thing)
    return thing

@pytest.fixture
def value(request):
    yield use(f"value of {request.node.name}")

@pytest.fixture
def broken(value):
    broken = use("broken")
    raise ValueError

@pytest.fixture
def broken_at_teardown():
    yield use("broken at teardown")
    raise ValueError

@pytest.fixture(autouse=True)
def alive():
    seen.append(sorted(name for name, reference in used.items() if reference() is not None))

def test_a(value, monkeypatch, tmp_path): local = use("local")
def test_b(value): local = use("local of a failure"); assert 0
def test_c(): pass
def test_d(broken): pass
def test_e(broken_at_teardown): pass
def test_f(): local = use("local of a skip"); pytest.skip()
class TestThem:
    def test_g(self): used["instance"] = weakref.ref(self)
class TestCase(unittest.TestCase):
    def test_h(self): used["case"] = weakref.ref(self)
def test_i(value): pass
def test_last():
    gc.collect()
    for name, reference in used.items():
        assert reference() is None or name in ("instance", "local of a failure")
    unwound = [one for one in gc.get_objects() if type(one).__name__ == "_Unwound"]
    print([seen, sum(one.__traceback__ is not None for one in unwound)])
"""


@pytest.mark.parametrize(
    "options", [(), ("--sandbox-jobs=2",), ("--sandbox-fresh",)], ids=["fork", "jobs", "fresh"]
)
def test_what_a_test_has_used_is_released_as_without_a_container(run, reports, options):
    """Local objects, values of fixtures, instances and exceptions of a test are released when the
    next test of its scope begins, if they are without a container: without a garbage collection.
    """
    run(WHAT_TESTS_USE, sandbox=False)
    run(WHAT_TESTS_USE, SHARED, *options)
    outside, inside = [
        ast.literal_eval(dict(one["sections"])["Captured stdout call"])
        for one in reports()
        if (one["test"], one["when"]) == ("test_last", "call")
    ]
    assert [] != outside[0]
    assert outside == inside


SKIPPED_LAST = """
import pytest
log = []

@pytest.fixture(scope="module", autouse=True)
def of_module():
    yield
    log.append("module")
    assert not FAILS, "module's teardown"

@pytest.fixture(scope="class")
def of_class():
    log.append("set up")
    yield
    log.append("class")
    assert not FAILS, "class's teardown"

class TestA:
    def test_a(self, of_class): pass
    @pytest.mark.skip
    def test_b(self): pass
    @pytest.mark.skipif(True, reason="why not")
    def test_c(self): pass
class TestB:
    def test_d(self): assert log == ["set up", "class"]
class TestC:
    def test_e(self, of_class): pass
    @pytest.mark.skip
    def test_f(self): pass
"""


# A new interpreter for each class sets up the module's fixture for each, too.
@pytest.mark.parametrize(
    ("scope", "options"),
    [
        ("class", ()),
        ("module", ()),
        ("session", ()),
        ("module", ("--sandbox-jobs=2",)),
        ("module", ("--sandbox-fresh",)),
        ("session", ("--sandbox-fresh",)),
    ],
)
@pytest.mark.parametrize("fails", [False, True], ids=["passes", "fails"])
def test_a_class_ends_with_a_skipped_test(run, reports, scope, options, fails):
    """What a class and a module have set up is torn down after their last test, which the parent
    has skipped; a failure of that is an error of this test's teardown phase, as without a
    container.
    """
    source = SKIPPED_LAST.replace("FAILS", str(fails))
    if scope == "class":
        source = source.replace('assert log == ["set up", "class"]', "pass")
    run(source, sandbox=False)
    run(source, f"--sandbox-scope={scope}", *options)
    found = [(one["test"], one["when"], one["outcome"]) for one in reports()]
    outside, inside = found[: len(found) // 2], found[len(found) // 2 :]
    assert outside == inside
    assert fails == (("test_c", "teardown", "failed") in inside)
    assert fails == (("test_f", "teardown", "failed") in inside)


HOOK = """
import os, pytest
def pytest_runtest_setup(item):
    if "hooked" in item.name: pytest.skip("by a hook")
    if "parent" in item.name and os.getppid() != 0: pytest.skip("in the parent only")
"""
#: What classes and a module tear down after their last test, which a hook or a mark has skipped.
LAST_IS_SKIPPED = """
import logging, warnings, pytest
@pytest.fixture(scope="module", autouse=True)
def of_module():
    yield
    print("printed by the module")
    logging.warning("logged by the module")
    warnings.warn("of the module")
    assert not FAILS, "module's teardown"
@pytest.fixture(scope="class")
def of_class(request):
    yield
    print("printed by the class")
    logging.warning("logged by the class")
    warnings.warn(f"of {request.cls.__name__}")
    assert not FAILS, "class's teardown"
class TestHooked:
    def test_a(self, of_class): pass
    def test_hooked(self, of_class): pass
class TestParent:
    def test_a(self, of_class): pass
    def test_parent(self, of_class): pass
class TestMarked:
    def test_a(self, of_class): pass
    @pytest.mark.skip
    def test_marked(self, of_class): pass
def test_a(): pass
def test_KIND(): pass
"""


@pytest.mark.parametrize(
    ("options", "kind", "fails"),
    [
        (("--sandbox-scope=class",), "hooked", True),
        ((SHARED,), "parent", True),
        ((SHARED,), "hooked", False),
        ((SHARED, "--sandbox-jobs=4", "-osandbox_jobs_hooks=conftest.py"), "hooked", True),
        ((SHARED, "--sandbox-fresh"), "hooked", True),
    ],
)
def test_nothing_of_a_teardown_after_a_skipped_test_is_lost(
    run, reports, pytester, options, kind, fails
):
    """Whether its process has begun it or not: the failures, the output and the warnings of a
    teardown after a test that the parent has skipped are those outside.
    """
    source = LAST_IS_SKIPPED.replace("FAILS", str(fails)).replace("KIND", kind)
    conftest = pytester.path / "conftest.py"
    conftest.write_text(conftest.read_text() + HOOK)
    found = []
    for is_inside in (False, True):
        lines = run(source, *(options if is_inside else ()), sandbox=is_inside).stdout.lines
        warned = sorted(one.rpartition(":")[2] for one in lines if "UserWarning: of " in one)
        reported = [
            (one["test"], one["when"], one["outcome"], one["text"].rpartition("\n")[2], printed)
            for one in reports()
            if (printed := [text for _name, text in one["sections"]]) or one["outcome"] == "failed"
        ]
        found.append((reported, warned))
        (pytester.path / "reports.jsonl").unlink()
    outside, inside = found
    assert outside == inside
    assert (4, 4) == (len(inside[0]), len(inside[1]))


def test_a_teardown_after_a_skipped_test_is_measured(run, pytester):
    """Lines that run when a module is torn down after a test that was skipped are covered."""
    pytest.importorskip("pytest_cov")
    pytester.makepyfile(helper="def tear_down():\n    return 1\n")
    run(
        """
import pytest, helper
@pytest.fixture(scope="module", autouse=True)
def of_module():
    yield
    helper.tear_down()
def test_a(): pass
@pytest.mark.skip
def test_b(): pass
""",
        SHARED,
        "--cov=helper",
        "--cov-fail-under=100",
        plugins=("pytest_cov.plugin",),
    ).stdout.fnmatch_lines(["*Required test coverage of 100% reached*"])


#: A module's fixture, whose teardown raises; and a last test that runs in no process of the scope.
RAISES_AT_THE_END = """
import pytest
@pytest.fixture(scope="module", autouse=True)
def of_module():
    yield
    RAISE
def test_a(): pass
MARK
def test_KIND(): pass
"""


@pytest.mark.parametrize("options", [(SHARED,), ("--sandbox-scope=session", "--sandbox-fresh")])
@pytest.mark.parametrize("kind", ["b", "hooked", "parent"])
@pytest.mark.parametrize(
    ("mark", "statement"),
    [
        ("xfail(run=False)", "assert 0, 'module'"),
        ("xfail(run=False, raises=ValueError)", "raise ValueError('module')"),
        ("xfail(run=False, raises=ValueError)", "assert 0, 'module'"),
        ("skip", "pytest.skip('module')"),
        ("skip", "pytest.xfail('module')"),
    ],
)
def test_an_expected_failure_of_a_teardown_is_reported(
    run, reports, pytester, options, kind, mark, statement
):
    """A teardown after a test that the parent has not run ends as outside: with a mark ``xfail`` it
    is an expected failure, unless the exception is another one than that.
    """
    source = RAISES_AT_THE_END.replace("RAISE", statement).replace("KIND", kind)
    source = source.replace("MARK", f"@pytest.mark.{mark}")
    conftest = pytester.path / "conftest.py"
    conftest.write_text(conftest.read_text() + HOOK)
    pytester.makepyfile(test_z="def test_z(): pass")
    found = []
    for is_inside in (False, True):
        run(source, *(options if is_inside else ()), sandbox=is_inside)
        found.append(
            [
                (one["test"], one["when"], one["outcome"], one["text"].rpartition("\n")[2])
                for one in reports()
                if one["when"] == "teardown"
            ]
        )
        (pytester.path / "reports.jsonl").unlink()
    outside, inside = found
    assert outside == inside
    assert [one[0] for one in inside if one[2] != "passed"] == [f"test_{kind}"]


@pytest.mark.parametrize("action", ["error", "ignore"])
def test_a_wider_fixture_has_the_warning_filters_of_the_test_that_needs_it(run, action):
    """A session fixture that is set up before the first test of a module is set up with the filters
    of the test that requests it: its warning is neither an error nor lost.
    """
    result = run(
        f"""
import pytest, warnings
@pytest.fixture(scope="session")
def of_session(): warnings.warn("of the session")
@pytest.mark.filterwarnings("{action}")
def test_a(): pass
def test_b(of_session): pass
""",
        SHARED,
    )
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines(["*::test_b", "*UserWarning: of the session"])


#: Stops the session in the parent, when a test has been called.
STOPS = """
import os, pytest

@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    if item.name == "test_stops" and os.getppid() != 0:
        item.session.shouldstop = "enough"
    return (yield)
"""


@pytest.mark.parametrize(
    ("mark", "own", "outer"),
    [
        ("xfail", "assert 0", "assert 0"),
        ("xfail(raises=ValueError)", "raise ValueError", "raise ValueError"),
        ("usefixtures", "pytest.skip()", "pytest.skip()"),
        ("usefixtures", "pytest.skip()", "pytest.xfail()"),
    ],
)
def test_a_teardown_that_fails_in_a_test_and_its_scope_ends_as_outside(
    run, reports, pytester, mark, own, outer
):
    """If a test's own teardown raises something, and that of its scope too, which ends because a
    hook stops the session, pytest looks at marks ``xfail`` and skips as outside, where both are in
    one group.
    """
    conftest = pytester.path / "conftest.py"
    conftest.write_text(conftest.read_text() + STOPS)
    source = f"""
import pytest
@pytest.fixture(scope="module")
def of_module():
    yield
    {outer}
@pytest.fixture
def own():
    yield
    {own}
@pytest.mark.{mark}
def test_stops(of_module, own): assert 0, "so the next test does not begin at once"
def test_never_runs(of_module): pass
"""
    run(source, "-rA", sandbox=False)
    run(source, "-rA", SHARED)
    found = [(one["test"], one["when"], one["outcome"]) for one in reports()]
    outside, inside = found[: len(found) // 2], found[len(found) // 2 :]
    assert outside == inside
    assert 3 == len(inside)


@pytest.mark.parametrize("options", [(), (SHARED,), ("--sandbox-jobs=2",)])
def test_fixtures_outside_are_torn_down_after_several_failures_inside(run, reports, options):
    """If several function fixtures of a test fail at their teardown, fixtures of wider scopes are
    torn down too: in that phase, with their failure, and before the next test.
    """
    source = """
import pytest
@pytest.fixture(scope="session")
def outer():
    yield
    pytest.fail("of the session")
@pytest.fixture(scope="class")
def middle():
    yield
@pytest.fixture
def first():
    yield
    pytest.fail("of the first")
@pytest.fixture
def second():
    yield
    raise ValueError("of the second")
class TestA:
    def test_a(self, outer, middle, first, second): pass
class TestB:
    def test_b(self, outer, middle, first, second): pass
"""
    run(source, sandbox=False)
    run(source, *options)
    texts = ("of the session", "of the first", "of the second")
    found = [
        (one["test"], one["when"], one["outcome"], [text in one["text"] for text in texts])
        for one in reports()
    ]
    outside, inside = found[: len(found) // 2], found[len(found) // 2 :]
    assert outside == inside
    assert inside[-1] == ("test_b", "teardown", "failed", [True, True, True])
