"""Tests whose process lies: each fails by itself, and nothing of the session or the host
changes.
"""

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
        objects = gc.get_objects()
        return next(one for one in objects if type(one) is ReportChannel and one._sender == os.getpid())

    NODEID = "test_lies.py::test_lies"
    def report(when="call", nodeid=None, **changed):
        nodeid = nodeid or os.environ["PYTEST_CURRENT_TEST"].split(" ")[0]
        path, _, name = nodeid.partition("::")
        return {"nodeid": nodeid, "location": [path, 0, name], "keywords": {}, "outcome": "passed", "longrepr": None,
                "when": when, "user_properties": [], "sections": [], "duration": 0, "start": 0, "stop": 0,
                "$report_type": "TestReport", **changed}
"""


@pytest.mark.parametrize(
    "lie",
    [
        'channel().send("report", {"report": report(outcome="failed"), "error": None, "symptoms": []})',
        'channel().send("report", {"report": report(when=None), "error": None, "symptoms": []})',
        'channel().send("logged", report(nodeid=os.environ["PYTEST_CURRENT_TEST"].split("::")[0] + "::test_first"))',
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
def test_an_invalid_message_fails_its_own_test(run, lie):
    """The running test fails with what is wrong, others keep their results, and the session goes
    on.
    """
    source = (
        f"{CHANNEL}\n    def test_first(): assert 0\n    def test_lies(): {lie}\n    def "
        "test_after(): pass"
    )
    result = run(source)
    result.assert_outcomes(failed=2, passed=1)
    result.stdout.fnmatch_lines(["*the test's process sent an invalid report: *"])
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
    assert not os.path.exists("/var/tmp/pwned")


def test_the_cache_stays_below_its_directory(run):
    """``config.cache.set`` with an absolute path writes nothing on the host."""
    run(
        'def test(request): request.config.cache.set("/var/tmp/pwned-by-cache", 1)'
    ).assert_outcomes(failed=1)
    assert not os.path.exists("/var/tmp/pwned-by-cache")


@pytest.mark.parametrize(
    "stop",
    ['channel().send("debugger", True, wake=True)', "request.config.hook.pytest_enter_pdb(config=request.config, pdb=None)"],
)  # fmt: skip
def test_no_test_stops_its_own_clock(run, stop):
    """Without a terminal, ``--pdb`` and ``--trace``, a debugger's message does not stop the
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
    """What a test writes when it is asked for its stack takes no more than its limit."""
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
    """In ``pytest --sandbox > log`` no descriptor of a test leads to the log, and what it prints is
    there.
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
    """O_NONBLOCK that a test sets on all that it has does not reach the session's output."""
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
    """What a session's fixture has open for reading and writing is opened again inside; the host's
    file stays.
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
    """``--log-file`` holds the records of tests inside."""
    source = 'import logging\ndef test(): logging.getLogger("x").error("from inside")'
    run(source, "--log-file=log.txt").assert_outcomes(passed=1)
    assert "from inside" in (pytester.path / "log.txt").read_text()


def test_odd_properties_give_the_plain_result(run, reports):
    """Properties with odd names, and those that are no pairs, are as without the sandbox."""
    source = """
    def test_none(record_property): record_property(None, 3)
    def test_number(request): request.node.user_properties.append((1, 2))
    def test_triple(request): request.node.user_properties.append((1, 2, 3))
    """
    run(source.replace("(1, 2, 3)", "(4, 5)")).assert_outcomes(passed=3)
    found = {one["test"]: one["properties"] for one in reports() if one["when"] == "call"}
    assert 3 == found["test_none"][json.loads('"null"')]
    assert 2 == found["test_number"]["1"]


def test_a_property_that_is_no_pair_is_kept(run):
    """A triple among a test's properties does not end the session."""
    run("def test(request): request.node.user_properties.append((1, 2, 3))").assert_outcomes(
        passed=1
    )


def test_a_forged_failure_cannot_move_the_cursor(run):
    """Control characters of a failure are shown escaped."""
    result = run('def test(): assert 0, "\\x1b[2J\\x1b]0;owned\\x07"')
    assert "\x1b[2J" not in result.stdout.str()
    assert "\\x1b[2J" in result.stdout.str()


def test_a_watchdog_of_faulthandler_is_the_forks_own(run):
    """``faulthandler_timeout`` arms a thread in the parent, which a fork does not have."""
    run(
        "def test_one(): pass\ndef test_two(): pass", "-o", "faulthandler_timeout=60"
    ).assert_outcomes(passed=2)


def test_a_warning_names_no_file_that_the_parent_opens(run, pytester):
    """A FIFO of the host as the place of a warning hangs nobody."""
    os.mkfifo(pytester.path / "fifo")
    source = f"""
    import warnings
    def test(): warnings.warn_explicit("hello", UserWarning, {str(pytester.path / "fifo")!r}, 1)
    """
    run(source).assert_outcomes(passed=1, warnings=1)
