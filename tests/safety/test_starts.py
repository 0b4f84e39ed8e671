"""What processes in a container can learn of, and do to, a command, call or file access that
starts.
"""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import pytest_sandbox
from pytest_sandbox import Container, SandboxError
from pytest_sandbox.container import remote
from pytest_sandbox.container.container import open_remote
from pytest_sandbox.container.processes import list_processes

SPY = Path(__file__).with_name("spy.py").read_text()
#: How many are started of each kind; 20,000 for a thorough run.
STARTS = int(os.environ.get("PYTEST_SANDBOX_STARTS", "40"))
SECRET = "secret-of-the-host"
PLAIN = {"PATH": "/usr/bin:/bin"}
#: Seconds over a timeout within which every call returns, as docs/security.md promises.
GRACE = 2.0


def stop_all(number):
    """Return a command that sends a signal to all other processes for ever."""
    loop = (
        f"import os\nprint('on', flush=True)\nwhile True:\n  try: os.kill(-1, {int(number)})\n "
        " except OSError: pass"
    )
    return [sys.executable, "-S", "-c", loop]


@pytest.fixture
def started():
    """Start a command that prints "on" first; its pipe is closed at the end."""
    begun = []

    def start(container, command):
        popen = container.popen(command, stdout=subprocess.PIPE, text=True, env=PLAIN)
        begun.append(popen)
        assert "on\n" == popen.stdout.readline()
        return popen

    yield start
    for popen in begun:
        popen.stdout.close()


def root_mount():
    """Return what the mounts of the host have and those of a container do not: the host's root."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return next(" ".join(line.split()[2:6]) for line in lines if line.split()[4] == "/")


def enter_and_run(container, **keywords):
    with open_remote(remote.find(container.id)) as entered:
        return entered.run(["true"], env=PLAIN, **keywords)


STARTED = {
    "run": lambda c: c.run(["true"], env=PLAIN),
    "popen": lambda c: c.popen(["true"], env=PLAIN).wait(),
    "call": lambda c: c.call(int),
    "exec": enter_and_run,
    "read_text": lambda c: c.read_text("/etc/passwd"),
    "write_text": lambda c: c.write_text("/tmp/x", "x"),
    "exists": lambda c: c.exists("/etc/passwd"),
    "processes": lambda c: list_processes(c.handle),
    "kill": lambda c: c.kill(0),
}


@pytest.mark.parametrize("kind", STARTED)
@pytest.mark.parametrize("settings", [{}, {"network": "host"}], ids=["default", "network=host"])
def test_nothing_of_the_caller_is_seen_in_proc(kind, settings, monkeypatch, tmp_path, started):
    """A process that starts in a container does not show the caller's memory, environment,
    command line, files or mounts.
    """
    monkeypatch.setenv("SECRET", SECRET)
    with Container(**settings) as c, open(tmp_path / SECRET, "w", encoding="utf-8"):
        # The secret is in the environment, and in the name of an open file; the second text is the
        # last argument of this process.
        wanted = [
            SECRET,
            Path("/proc/self/cmdline").read_bytes().split(b"\0")[-2].decode(),
            root_mount(),
        ]
        spy = started(c, [sys.executable, "-S", "-c", SPY, "600", *(text[::-1] for text in wanted)])
        for _ in range(STARTS):
            STARTED[kind](c)
        c.write_text("/dev/shm/stop", "")
        assert [] == json.loads(spy.stdout.readline())


@pytest.mark.parametrize("kind", STARTED)
def test_a_process_that_stops_all_others_does_not_hang_the_caller(kind, started):
    """With everything inside stopped, calls return within their timeout, and file accesses at
    once.
    """
    timed = {
        "run": lambda c: c.run(["true"], env=PLAIN, timeout=1),
        "popen": lambda c: c.popen(["true"], env=PLAIN, start_timeout=1).wait(1),
        "call": lambda c: c.call(int, timeout=1),
        "exec": lambda c: enter_and_run(c, timeout=1),
    }
    with Container() as c:
        started(c, stop_all(signal.SIGSTOP))
        for _ in range(3):
            begun = time.monotonic()
            with suppress(subprocess.TimeoutExpired, TimeoutError):
                timed.get(kind, STARTED[kind])(c)
            assert time.monotonic() - begun < 1 + GRACE


@pytest.mark.needs("root", "limits")
@pytest.mark.parametrize("kind", ["run", "call"])
def test_processes_that_take_all_cpu_time_do_not_hang_the_caller(kind, started):
    """A timeout also holds while a hundred processes use up a limit of 0.02 CPUs."""
    with Container(cpus=0.02) as c:
        with c.handle.cgroup.unthrottled():
            started(
                c,
                ["sh", "-c", "for i in $(seq 100); do (while :; do :; done) & done; echo on; wait"],
            )
        begun = time.monotonic()
        with pytest.raises((subprocess.TimeoutExpired, TimeoutError)):
            c.run(["sleep", "9"], env=PLAIN, timeout=1) if kind == "run" else c.call(
                time.sleep, 9, timeout=1
            )
        assert time.monotonic() - begun < 1 + GRACE
        begun = time.monotonic()
    assert time.monotonic() - begun < 3 * GRACE


@pytest.mark.needs("root", "limits")
def test_a_limit_on_cpu_time_is_set_again_after_a_timeout():
    """The limit on CPU time, which is lifted while killed processes end, is set again."""
    with Container(cpus=0.2) as c:
        with pytest.raises(subprocess.TimeoutExpired):
            c.run(["sleep", "9"], timeout=0.1)
        c.popen(["sh", "-c", "while :; do :; done"])
        deadline = time.monotonic() + 60
        while not c.stats().cpu_throttled_seconds:
            assert time.monotonic() < deadline


def test_a_fork_bomb_is_killed(started):
    """kill() ends processes that fork faster than they can be listed."""
    with Container(pids_limit=60) as c:
        started(c, ["sh", "-c", "f() { f & f & }; echo on; while :; do f 2>/dev/null; done"])
        c.kill()
        assert [] == list_processes(c.handle)


def test_a_timeout_of_a_call_leaves_other_processes_alone():
    """call(timeout=) kills the processes of the function, and no others."""
    with Container() as c:
        other = c.popen(["sleep", "1000"])
        with pytest.raises(TimeoutError):
            c.call(subprocess.run, ["sleep", "999"], timeout=0.2)
        assert ["sleep 1000"] == [line for _pid, line in list_processes(c.handle)]
        assert other.poll() is None


def test_what_a_called_function_prints_is_not_lost(tmp_path):
    """Its output is flushed at its end, and output buffered by the caller is not written twice."""
    script = (
        "from pytest_sandbox import Container\nprint('before')\nwith Container() as c: "
        "c.call(print, 'inside')\nprint('after')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": here()},
    )
    assert ("before\ninside\nafter\n", "") == (done.stdout, done.stderr)


def here():
    return str(Path(pytest_sandbox.__file__).parents[1])


def test_a_huge_result_of_a_call_is_refused():
    """A result of more than 64 MiB is an error that says so."""
    with Container() as c, pytest.raises(SandboxError, match="more than 64 MiB"):
        c.call(lambda: "x" * (65 << 20))


def test_what_a_command_sets_on_its_stdout_is_its_own():
    """A command that sets O_NONBLOCK on its stdout does not change the caller's stdout."""
    script = """
import os, sys
from pytest_sandbox import Container
code = "import os; os.set_blocking(1, False); os.set_blocking(2, False); print('inside')"
with Container() as c:
    c.run([sys.executable, "-c", code], check=True)
print(os.get_blocking(1), os.get_blocking(2))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": here()},
    )
    assert ("inside\nTrue True\n", "") == (done.stdout, done.stderr)


CHILDREN_IGNORED = """
import signal, sys, subprocess
from pytest_sandbox import Container
how = sys.argv[1]
def reap(*_):
    import os
    try:
        while os.waitpid(-1, os.WNOHANG)[0]: pass
    except ChildProcessError: pass
signal.signal(signal.SIGCHLD, signal.SIG_IGN if how == "ignored" else reap)
with Container() as c:
    print(c.run(["echo", "hello"], capture_output=True, text=True).stdout, end="")
    print(c.call(int, "7"), c.read_text("/etc/passwd")[:4], c.exists("/etc"))
    c.write_text("/tmp/x", "y")
    try: c.call(sys.exit, 3)
    except SystemExit as error: print("exit", error.code)
with Container() as c: print(len(c.diff()) >= 0)
"""


@pytest.mark.parametrize("how", ["ignored", "reaped by a handler"])
def test_a_caller_that_ignores_its_children(how):
    """The caller may ignore SIGCHLD, or have a handler that waits for every child."""
    env = {**os.environ, "PYTHONPATH": here()}
    done = subprocess.run(
        [sys.executable, "-c", CHILDREN_IGNORED, how],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=env,
    )
    assert ("hello\n7 root True\nexit 3\nTrue\n", "", 0) == (
        done.stdout,
        done.stderr,
        done.returncode,
    )


def test_descriptors_that_the_caller_names_are_passed():
    """pass_fds passes descriptors under the same numbers, and all others are closed."""
    reader, writer = os.pipe()
    other = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(other, True)
    code = (
        f"import os; os.write({writer}, repr([fd for fd in range(3, 256) if is_open(fd)]).encode())"
    )
    try:
        with Container() as c:
            c.run([sys.executable, "-S", "-c", IS_OPEN + code], pass_fds=[writer], check=True)
        assert repr([writer]) == os.read(reader, 99).decode()
    finally:
        for fd in (reader, writer, other):
            os.close(fd)


IS_OPEN = """
import os
def is_open(fd):
    try: return bool(os.fstat(fd))
    except OSError: return False
"""


def test_close_fds_false_passes_all_inheritable_descriptors():
    """close_fds=False has the same effect as in subprocess."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        with Container() as c:
            c.run(
                [sys.executable, "-c", f"import os; os.write({writer}, b'hello')"],
                close_fds=False,
                check=True,
            )
        assert b"hello" == os.read(reader, 99)
    finally:
        os.close(reader)
        os.close(writer)


def test_links_into_proc_do_not_lead_to_the_caller():
    """File access through a link to /proc/self finds no file, and the kernel's log is denied."""
    with Container() as c:
        c.run(
            [
                "sh",
                "-c",
                (
                    "ln -s /proc/self/environ /root/a; ln -s /proc/kmsg /root/b; "
                    "ln -s /proc/self/mem /root/c"
                ),
            ],
            check=True,
        )
        with pytest.raises(FileNotFoundError):
            c.read_bytes("/root/a")
        with pytest.raises(PermissionError):
            c.read_bytes("/root/b")
        with pytest.raises(FileNotFoundError):
            c.write_bytes("/root/c", b"x")


def test_an_open_fifo_does_not_hang_the_reader(started):
    """read_bytes returns what can be read without waiting."""
    with Container() as c:
        c.run(["mkfifo", "/tmp/fifo"], check=True)
        started(c, ["sh", "-c", "exec 3<>/tmp/fifo; printf abc >&3; echo on; sleep 60"])
        assert (b"abc", b"") == (c.read_bytes("/tmp/fifo"), c.read_bytes("/tmp/fifo"))
        assert 1 << 20 == len(c.read_bytes("/dev/zero"))


def test_the_library_waits_for_its_own_children_only():
    """No call waits for any child, which would take the status of the caller's own children."""
    found = []
    for path in Path(pytest_sandbox.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(getattr(node, "func", None), "attr", "")
            if name in {"waitpid", "wait4", "waitid"} and ast.unparse(node.args[0]) in {
                "-1",
                "os.P_ALL",
            }:
                found.append(f"{path}:{node.lineno}")
            if name in {"wait", "wait3"} and ast.unparse(node.func) in {"os.wait", "os.wait3"}:
                found.append(f"{path}:{node.lineno}")
    assert [] == found
