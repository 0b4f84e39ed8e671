"""Test processes that forge reports or write to inherited files: only the test itself fails."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import pytest

pytestmark = pytest.mark.needs("root", "limits")

CHANNEL = """
    import fcntl, gc, json, os, pathlib, pytest, signal, sys, time

    def channel():
        from pytest_sandbox.plugin.report_channel import ReportChannel
        channels = [one for one in gc.get_objects() if type(one) is ReportChannel]
        return next(one for one in channels if one._sender == os.getpid())

    def report(when="call", nodeid=None, **changed):
        nodeid = nodeid or os.environ["PYTEST_CURRENT_TEST"].split(" ")[0]
        path, _, name = nodeid.partition("::")
        return {
            "nodeid": nodeid,
            "location": [path, 0, name],
            "keywords": {},
            "outcome": "passed",
            "longrepr": None,
            "when": when,
            "user_properties": [],
            "sections": [],
            "duration": 0,
            "start": 0,
            "stop": 0,
            "$report_type": "TestReport",
            **changed,
        }

    def phase(**changed):
        return {"report": report(**changed), "error": None, "symptoms": []}

    def of_test(name):
        return report(nodeid=os.environ["PYTEST_CURRENT_TEST"].split("::")[0] + "::" + name)
"""


@pytest.mark.parametrize(
    "forge",
    [
        'channel().send("report", phase(outcome="failed"))',
        'channel().send("report", phase(when=None))',
        'channel().send("logged", of_test("test_first"))',
        'channel().send("coverage", "c2VsZWN0")',
        'channel().send("cache", ["/var/tmp/pwned", 1])',
        'channel().send("session_stop", [{}, 3])',
        'channel().send("subtests", "x")',
        'channel().send("benchmark", {})',
        'channel().send("unknown", 1)',
        'os.write(channel().file, channel().nonce + b" {\\n")',
        'os.write(channel().file, channel().nonce + b" " + b"[" * (5 << 20) + b"\\n")',
    ],
)  # fmt: skip
def test_an_invalid_message_fails_its_own_test(run, forge):
    """An invalid message fails the running test with the reason; other tests keep their results,
    and the session continues.
    """
    source = (
        f"{CHANNEL}\n    def test_first(): assert 0\n    def test_forges(): {forge}\n    def "
        "test_after(): pass"
    )
    result = run(source)
    result.assert_outcomes(failed=2, passed=1)
    result.stdout.fnmatch_lines(["*the test's process sent an invalid report: *"])
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
    assert not os.path.exists("/var/tmp/pwned")


def test_a_recorded_result_of_a_shared_process_stays(run):
    """A test that shares a process with an earlier one cannot report about it again."""
    source = f"""{CHANNEL}
    def test_first(): assert 0
    def test_forges():
        for when in ("setup", "call", "teardown"):
            forged = {{**of_test("test_first"), "when": when}}
            channel().send("report", {{"report": forged, "error": None, "symptoms": []}})
    def test_after(): pass
    """
    result = run(source, "--sandbox-scope=module")
    result.assert_outcomes(failed=2, passed=1)
    result.stdout.fnmatch_lines(["*is about another test, *test_first*"])


def test_the_cache_stays_below_its_directory(run):
    """A test cannot write to a path outside of the cache directory by ``config.cache.set()``."""
    run(
        'def test(request): request.config.cache.set("/var/tmp/pwned-by-cache", 1)'
    ).assert_outcomes(failed=1)
    assert not os.path.exists("/var/tmp/pwned-by-cache")


@pytest.mark.parametrize(
    "stop",
    [
        'channel().send("debugger", True, wake=True)',
        "request.config.hook.pytest_enter_pdb(config=request.config, pdb=None)",
    ],
)
def test_no_test_stops_its_own_clock(run, stop):
    """Without a terminal, ``--pdb`` and ``--trace``, a debugger's message does not suspend the
    timeout.
    """
    body = (
        f"{CHANNEL}\n    @pytest.mark.container(timeout=1)\n    def test(request):\n        "
        f"{stop}\n        time.sleep(100)"
    )
    result = run(body)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*timeout: still running after 1 s*"])


def test_a_flood_of_stack_is_cut(run):
    """A test that writes without end to the pipe for its stack takes a bounded amount of memory."""
    source = f"""{CHANNEL}
    @pytest.mark.container(timeout=1)
    def test_flood():
        pipe = channel().wake_writer
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)
        while True: os.write(pipe, b"x" * 65536)
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    run(source).assert_outcomes(failed=1)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - before < 256 << 10


@pytest.mark.parametrize("capture", ["fd", "no"])
def test_a_test_cannot_rewrite_the_log(pytester, capture):
    """In ``pytest --sandbox > log`` no descriptor of a test refers to the log, and the log has what
    the test prints.
    """
    pytester.makepyfile("""
    import os
    def test_fails(): assert 0, "this failure stays"
    def test_hostile():
        os.write(1, b"printed inside\\n")
        for name in os.listdir("/proc/self/fd"):
            try:
                path = os.readlink(f"/proc/self/fd/{name}")
                if "canary.log" in path:
                    fd = os.open(f"/proc/self/fd/{name}", os.O_RDWR)
                    os.ftruncate(fd, 0)
            except OSError:
                continue
    """)
    log = pytester.path / "canary.log"
    command = [sys.executable, "-m", "pytest", "-p", "sandbox", "--sandbox", f"--capture={capture}"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    with log.open("w") as file:
        subprocess.run(command, stdout=file, stderr=file, check=False, timeout=120, env=environment)
    text = log.read_text()
    assert "this failure stays" in text
    assert "1 failed, 1 passed" in text
    assert (capture == "no") == ("printed inside" in text)


def test_nonblocking_output_is_the_tests_own(run):
    """O_NONBLOCK that a test sets on all its descriptors is not set on the session's output."""
    source = """
    import os
    def test():
        for name in os.listdir("/proc/self/fd"):
            try: os.set_blocking(int(name), False)
            except OSError: pass
    def test_host(container): assert os.get_blocking(1)
    """
    run(source, "-s").assert_outcomes(passed=2)


def test_a_file_of_a_higher_fixture_is_the_containers(run, tmp_path_factory):
    """A file that a session fixture has open for writing is opened again inside; the file of the
    host is unchanged.
    """
    path = tmp_path_factory.mktemp("host") / "data"
    path.write_text("host")
    source = f"""
    import os, pytest
    @pytest.fixture(scope="session")
    def file():
        with open({str(path)!r}, "r+") as file: yield file
    def test(file):
        assert "host" == file.read()
        os.ftruncate(os.open(f"/proc/self/fd/{{file.fileno()}}", os.O_RDWR), 0)
    def test_again(file): assert "host" == file.read()
    """
    run(source).assert_outcomes(passed=2)
    assert "host" == path.read_text()


def test_a_log_file_has_what_tests_log(run, pytester):
    """``--log-file`` has the records of tests that run inside."""
    source = 'import logging\ndef test(): logging.getLogger("x").error("from inside")'
    run(source, "--log-file=log.txt").assert_outcomes(passed=1)
    assert "from inside" in (pytester.path / "log.txt").read_text()


def test_properties_with_names_of_any_type_are_reported(run, reports):
    """User properties with names that are not strings are the same as without a sandbox."""
    source = """
    def test_none(record_property): record_property(None, 3)
    def test_number(request): request.node.user_properties.append((1, 2))
    def test_triple(request): request.node.user_properties.append((1, 2, 3))
    """
    run(source.replace("(1, 2, 3)", "(4, 5)")).assert_outcomes(passed=3)
    found = {one["test"]: one["properties"] for one in reports() if one["when"] == "call"}
    assert 3 == found["test_none"][json.loads('"null"')]
    assert 2 == found["test_number"]["1"]


def test_a_property_that_is_not_a_pair_is_accepted(run):
    """A user property of three values does not end the session."""
    run("def test(request): request.node.user_properties.append((1, 2, 3))").assert_outcomes(
        passed=1
    )


def test_a_forged_failure_cannot_move_the_cursor(run):
    """Control characters in a failure are shown escaped."""
    result = run('def test(): assert 0, "\\x1b[2J\\x1b]0;owned\\x07"')
    assert "\x1b[2J" not in result.stdout.str()
    assert "\\x1b[2J" in result.stdout.str()


def test_faulthandler_timeout_works_inside(run):
    """With ``faulthandler_timeout`` set, whose timer is a thread, tests run inside."""
    run(
        "def test_one(): pass\ndef test_two(): pass", "-o", "faulthandler_timeout=60"
    ).assert_outcomes(passed=2)


def test_a_timer_of_faulthandler_in_a_conftest_blocks_no_failure(run, pytester):
    """A failure cancels the timer, but its thread exists in the parent only."""
    pytester.makeconftest(
        """
        import faulthandler
        def pytest_configure(config): faulthandler.dump_traceback_later(600, exit=True)
        def pytest_unconfigure(config): faulthandler.cancel_dump_traceback_later()
        """
    )
    result = run("def test_one(): assert 0\ndef test_two(): pass", "--sandbox-timeout=10")
    result.assert_outcomes(passed=1, failed=1)


def test_a_test_can_use_the_timer_of_faulthandler(run):
    """A timer that the test starts writes the stack, unless the test cancels it."""
    source = """
    import faulthandler, time
    def test_writes(tmp_path):
        with open(tmp_path / "stack", "w+") as file:
            faulthandler.dump_traceback_later(0.05, file=file)
            limit = time.monotonic() + 10
            while "test_writes" not in (tmp_path / "stack").read_text():
                assert time.monotonic() < limit
                time.sleep(0.01)
    def test_cancels(tmp_path):
        with open(tmp_path / "stack", "w+") as file:
            faulthandler.dump_traceback_later(0.3, file=file)
            faulthandler.cancel_dump_traceback_later()
            time.sleep(0.5)
            assert not (tmp_path / "stack").read_text()
    """
    run(source).assert_outcomes(passed=2)


def test_a_warning_names_no_file_that_the_parent_opens(run, pytester):
    """The parent does not open the path that a warning names: a FIFO would block it."""
    os.mkfifo(pytester.path / "fifo")
    source = f"""
    import warnings
    def test(): warnings.warn_explicit("hello", UserWarning, {str(pytester.path / "fifo")!r}, 1)
    """
    run(source).assert_outcomes(passed=1, warnings=1)
