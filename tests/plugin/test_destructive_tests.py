"""Tests that would harm the session or the host: each fails or passes alone, and the next passes.

Before it does harm, a test proves that it is in a container: by its PID namespace, its host name,
the overlay at its root, and its mount namespace.
"""

from __future__ import annotations

import os

import pytest

pytestmark = pytest.mark.needs("root", "limits")


PROVE = f"""
    import os, pathlib, pytest, signal, socket, subprocess, sys

    def prove_inside():
        assert 0 == os.getppid()
        assert {os.uname().nodename!r} != socket.gethostname()
        mounts = open("/proc/self/mountinfo").read().splitlines()
        assert "overlay" == next(one.split(" - ")[1].split()[0] for one in mounts if " / / " in one)
        assert {os.readlink("/proc/self/ns/mnt")!r} != os.readlink("/proc/self/ns/mnt")
"""


NEXT = """
    def test_next(tmp_path):
        assert pathlib.Path("/etc/passwd").exists() and pathlib.Path("/usr/bin/env").exists()
        assert 0 == subprocess.run(["true"]).returncode
"""


@pytest.fixture
def run_destructive(run, reports):
    """Return a function that runs a destructive test and one after it, and returns the failed
    report, or None if both passed.
    """

    def run_destructive(body, *, mark="", outcome="failed"):
        lines = "\n".join(f"        {line}" for line in body.strip().splitlines())
        result = run(
            f"{PROVE}\n    @pytest.mark.container({mark})\n    def test_bad():\n        "
            f"prove_inside()\n{lines}\n{NEXT}",
            "-v",
        )
        result.assert_outcomes(
            **({"passed": 2} if outcome == "passed" else {"passed": 1, "failed": 1})
        )
        assert 0 == result.outlines.count("INTERNALERROR")
        return next((report for report in reports() if report["outcome"] == "failed"), None)

    return run_destructive


def test_a_fork_bomb(run_destructive):
    """A fork bomb is stopped by the limit on processes."""
    report = run_destructive("while True:\n    os.fork()", mark="pids_limit=50, timeout=5")
    assert (
        report["text"].startswith(
            ("killed by", "timeout", "the test's process ended", "def test_bad", "\n")
        )
        or "BlockingIOError" in report["text"]
    )
    assert "pids_limit=50" in dict(report["sections"])["container"]


def test_a_memory_hog(run_destructive):
    """A test that allocates without end is killed alone."""
    assert run_destructive("x = bytearray(1 << 40 >> 10)", mark='memory="64m"')["text"].startswith(
        "killed for memory: limit 64 MiB"
    )


def test_a_disk_filler(run_destructive):
    """A test that fills its disk gets ENOSPC; the next test has space."""
    body = (
        'with open("/var/tmp/fill", "wb") as file:\n    while True:\n        '
        "file.write(bytes(1 << 20))"
    )
    assert "No space left on device" in run_destructive(body, mark='disk="8m"')["text"]


def test_an_exit_without_a_report(run_destructive):
    """A test process that exits without a report is a failure."""
    assert "ended with status 0 before" in run_destructive("os._exit(0)")["text"]


def test_a_kill_of_its_own_process_group(run_destructive):
    """``os.kill(0, 9)`` kills no process outside."""
    assert run_destructive("os.kill(0, 9)")["text"].startswith("killed by SIGKILL")


def test_a_kill_of_its_parent(run_destructive):
    """The parent has the PID 0 inside, so that ``os.kill(os.getppid(), 9)`` kills only the process
    group.
    """
    assert run_destructive("os.kill(os.getppid(), 9)")["text"].startswith("killed by SIGKILL")


def test_a_kill_of_everything(run_destructive):
    """``os.kill(1, 9)`` and ``os.kill(-1, 9)`` kill no process but the container's own."""
    run_destructive(
        'os.kill(1, 9)\nchild = subprocess.Popen(["sleep", "1000"])\nos.kill(-1, 9)\nassert -9 == '
        "child.wait()",
        outcome="passed",
    )


def test_a_loop_that_ignores_sigterm(run_destructive):
    """A test that ignores SIGTERM is killed at its timeout."""
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True:\n    pass"
    assert run_destructive(body, mark="timeout=1")["text"].startswith(
        "timeout: still running after 1 s"
    )


def test_a_daemon_that_holds_the_descriptors(run_destructive):
    """A process that outlives the test with all descriptors open does not delay the end, and is
    killed.
    """
    body = 'subprocess.Popen(["sleep", "1000"], close_fds=False, start_new_session=True)'
    run_destructive(body, outcome="passed")


def test_a_gigabyte_on_stdout(run_destructive):
    """A gigabyte of output does not end the session."""
    run_destructive("for _ in range(1024):\n    os.write(1, bytes(1 << 20))", outcome="passed")


def test_a_failure_after_much_output(run_destructive):
    """The report of a failure has the start and the end of the output."""
    report = run_destructive("for _ in range(64):\n    os.write(1, b'x' * (1 << 20))\nassert 0")
    assert "characters left out" in dict(report["sections"])["Captured stdout call"]


def test_closed_descriptors(run_destructive):
    """A test that closes all descriptors cannot report, and fails."""
    report = run_destructive("os.closerange(0, 4096)")
    assert "before the test was over" in report["text"]


@pytest.mark.parametrize(
    "garbage",
    [
        "b'garbage\\n' * 100",
        "b'\\x00\\x01' * 1000",
        'b\'{"kind": "report", "outcome": "passed"}\\n["done", null]\\n\'',
    ],
)
def test_garbage_on_every_descriptor(run_destructive, garbage):
    """Garbage and forged reports on any descriptor are ignored; the test's own report is not."""
    body = f"""
for fd in range(3, 256):
    try:
        os.set_blocking(fd, False)
        os.write(fd, {garbage})
    except OSError:
        pass
os._exit(0)"""
    text = run_destructive(body)["text"]
    assert "before the test was over" in text
    assert "data that is not a report was written" in text
    run_destructive(body.replace("os._exit(0)", ""), outcome="passed")


def test_endless_output_on_every_descriptor(run_destructive):
    """Endless output on every descriptor ends at the timeout."""
    body = """
for fd in range(3, 256):
    try:
        os.set_blocking(fd, False)
    except OSError:
        pass
while True:
    for fd in range(3, 256):
        try:
            os.write(fd, b"noise\\n")
        except OSError:
            pass"""
    assert run_destructive(body, mark="timeout=1")["text"].startswith(
        "timeout: still running after 1 s"
    )


def test_a_fork_that_returns_into_pytest(run_destructive):
    """A child of the test that returns into pytest sends no report."""
    run_destructive("os.fork()", outcome="passed")


def test_removing_the_root(run_destructive):
    """``rm -rf /`` removes only the container's view of the files."""
    report = run_destructive(
        'subprocess.run(["rm", "-rf", "--no-preserve-root", "/"], '
        'stderr=subprocess.DEVNULL)\nassert not os.path.exists("/etc/passwd")\nassert 0'
    )
    assert "D /etc" in dict(report["sections"])["changes"]


def test_unmounting(run_destructive):
    """Unmounting /proc is refused."""
    run_destructive(
        'assert 0 != subprocess.run(["umount", "-l", "/proc"], '
        "stderr=subprocess.DEVNULL).returncode",
        outcome="passed",
    )


@pytest.mark.parametrize(
    "what", ["SystemExit(3)", "KeyboardInterrupt", "GeneratorExit", "BaseException('odd')"]
)
def test_exceptions_that_end_a_program(run_destructive, what):
    """An exception that would end a program fails only the test."""
    assert what.partition("(")[0] in run_destructive(f"raise {what}")["text"]


def test_an_exception_whose_repr_raises(run_destructive):
    """An exception with a ``__repr__`` that raises is reported."""
    body = """
class Odd(Exception):
    def __repr__(self): raise RuntimeError("repr")
    __str__ = __repr__
raise Odd"""
    assert "Odd" in run_destructive(body)["text"]


def test_a_deep_recursion(run_destructive):
    """A stack overflow ends only the test's process."""
    report = run_destructive(
        "sys.setrecursionlimit(10 ** 9)\ndef f(): return eval('f()', {'f': f})\nf()"
    )
    assert report["text"].startswith("killed by SIGSEGV") or "RecursionError" in report["text"]


def test_a_broken_interpreter(run_destructive):
    """A test that breaks modules which pytest needs fails alone."""
    report = run_destructive(
        "import json\njson.dumps = None\nsys.stdout = None\nsys.modules.clear()\nassert 0"
    )
    assert report["when"] in {"call", "teardown"}
