"""Tests that do what a test should not: each ends itself with a fitting verdict, and the next test
passes.

What would harm the machine proves first, by the container's own PID 1 and host name and by its
root's overlay, that it is inside.
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
        assert "overlay" == next(line.split(" - ")[1].split()[0] for line in open("/proc/self/mountinfo") if line.split()[4] == "/")
        assert {os.readlink("/proc/self/ns/mnt")!r} != os.readlink("/proc/self/ns/mnt")
"""

NEXT = """
    def test_next(tmp_path):
        assert pathlib.Path("/etc/passwd").exists() and pathlib.Path("/usr/bin/env").exists()
        assert 0 == subprocess.run(["true"]).returncode
"""


@pytest.fixture
def misbehave(run, reports):
    """Return a function that runs one misbehaving test with a healthy one after it, and returns the
    failed report (None: it passed).
    """

    def misbehave(body, *, mark="", outcome="failed"):
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

    return misbehave


def test_a_fork_bomb(misbehave):
    """Meets the limit on processes, and dies with its test."""
    report = misbehave("while True:\n    os.fork()", mark="pids_limit=50, timeout=5")
    assert (
        report["text"].startswith(
            ("killed by", "timeout", "the test's process ended", "def test_bad", "\n")
        )
        or "BlockingIOError" in report["text"]
    )
    assert "pids_limit=50" in dict(report["sections"])["container"]


def test_a_memory_hog(misbehave):
    """Is killed alone."""
    assert misbehave("x = bytearray(1 << 40 >> 10)", mark='memory="64m"')["text"].startswith(
        "killed for memory: limit 64 MiB"
    )


def test_a_disk_filler(misbehave):
    """Meets ENOSPC, and the next test has room."""
    body = (
        'with open("/var/tmp/fill", "wb") as file:\n    while True:\n        '
        "file.write(bytes(1 << 20))"
    )
    assert "No space left on device" in misbehave(body, mark='disk="8m"')["text"]


def test_an_exit_without_a_word(misbehave):
    """Is no pass."""
    assert "ended with status 0 before" in misbehave("os._exit(0)")["text"]


def test_a_kill_of_its_own_group(misbehave):
    """``os.kill(0, 9)`` reaches nobody outside."""
    assert misbehave("os.kill(0, 9)")["text"].startswith("killed by SIGKILL")


def test_a_kill_of_its_parent(misbehave):
    """The parent has no number inside, so ``os.kill(os.getppid(), 9)`` is a kill of its own
    group.
    """
    assert misbehave("os.kill(os.getppid(), 9)")["text"].startswith("killed by SIGKILL")


def test_a_kill_of_everything(misbehave):
    """``os.kill(-1, 9)`` and a kill of PID 1 reach nobody but the container's own."""
    misbehave(
        'os.kill(1, 9)\nchild = subprocess.Popen(["sleep", "1000"])\nos.kill(-1, 9)\nassert -9 == '
        "child.wait()",
        outcome="passed",
    )


def test_a_loop_that_ignores_sigterm(misbehave):
    """Ends at its timeout."""
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True:\n    pass"
    assert misbehave(body, mark="timeout=1")["text"].startswith("timeout: still running after 1 s")


def test_a_daemon_that_keeps_the_pipe(misbehave):
    """A process that outlives the body and holds every descriptor is not waited for, and is gone
    after.
    """
    body = 'subprocess.Popen(["sleep", "1000"], close_fds=False, start_new_session=True)'
    misbehave(body, outcome="passed")


def test_a_gigabyte_on_stdout(misbehave):
    """Is captured without breaking the session."""
    misbehave("for _ in range(1024):\n    os.write(1, bytes(1 << 20))", outcome="passed")


def test_a_failure_after_much_output(misbehave):
    """Is shown with the beginning and the end of the output."""
    report = misbehave("for _ in range(64):\n    os.write(1, b'x' * (1 << 20))\nassert 0")
    assert "characters left out" in dict(report["sections"])["Captured stdout call"]


def test_closed_descriptors(misbehave):
    """A test that closes everything cannot report, and is no pass."""
    report = misbehave("os.closerange(0, 4096)")
    assert "before the test was over" in report["text"]


@pytest.mark.parametrize(
    "garbage",
    [
        "b'garbage\\n' * 100",
        "b'\\x00\\x01' * 1000",
        'b\'{"kind": "report", "outcome": "passed"}\\n["done", null]\\n\'',
    ],
)
def test_garbage_on_every_descriptor(misbehave, garbage):
    """Neither garbage nor a forged report on any descriptor is believed; the test's own report
    still is.
    """
    body = f"""
for fd in range(3, 256):
    try:
        os.set_blocking(fd, False)
        os.write(fd, {garbage})
    except OSError:
        pass
os._exit(0)"""
    text = misbehave(body)["text"]
    assert "before the test was over" in text
    assert "something else than reports came" in text
    misbehave(body.replace("os._exit(0)", ""), outcome="passed")


def test_noise_without_end_on_every_descriptor(misbehave):
    """Keeps no timeout from coming, and costs no more memory than a report may."""
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
    assert misbehave(body, mark="timeout=1")["text"].startswith("timeout: still running after 1 s")


def test_a_fork_that_goes_on_into_pytest(misbehave):
    """A child of the test that returns into pytest says nothing."""
    misbehave("os.fork()", outcome="passed")


def test_the_wreck_of_the_root(misbehave):
    """``rm -rf /`` takes the container's view alone."""
    report = misbehave(
        'subprocess.run(["rm", "-rf", "--no-preserve-root", "/"], '
        'stderr=subprocess.DEVNULL)\nassert not os.path.exists("/etc/passwd")\nassert 0'
    )
    assert "D /etc" in dict(report["sections"])["changes"]


def test_unmounting(misbehave):
    """Is refused, and nothing of the host's is unmounted."""
    misbehave(
        'assert 0 != subprocess.run(["umount", "-l", "/proc"], '
        "stderr=subprocess.DEVNULL).returncode",
        outcome="passed",
    )


@pytest.mark.parametrize(
    "what", ["SystemExit(3)", "KeyboardInterrupt", "GeneratorExit", "BaseException('odd')"]
)
def test_exceptions_that_end_a_program(misbehave, what):
    """End their own test."""
    assert what.partition("(")[0] in misbehave(f"raise {what}")["text"]


def test_an_exception_whose_texts_raise(misbehave):
    """Is reported all the same."""
    body = """
class Odd(Exception):
    def __repr__(self): raise RuntimeError("repr")
    __str__ = __repr__
raise Odd"""
    assert "Odd" in misbehave(body)["text"]


def test_a_deep_recursion(misbehave):
    """Overflows its own stack alone.

    Since Python 3.14 the parser may notice first, which raises MemoryError.
    """
    report = misbehave("sys.setrecursionlimit(10 ** 9)\ndef f(): return eval('f()', {'f': f})\nf()")
    ends = ("killed by SIGSEGV", "RecursionError", "MemoryError: Parser stack overflowed")
    assert [] != [end for end in ends if end in report["text"]]


def test_broken_plumbing(misbehave):
    """A test that breaks what pytest itself needs in its process ends its own test."""
    report = misbehave(
        "import json\njson.dumps = None\nsys.stdout = None\nsys.modules.clear()\nassert 0"
    )
    assert report["when"] in {"call", "teardown"}
