"""``Container.popen`` behaves as ``subprocess.Popen``: pipes, signals, waiting, from many threads
at once.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import re
import signal
import subprocess
import sys
import threading
from subprocess import DEVNULL, PIPE

import pytest
from descriptors import open_descriptors

from pytest_sandbox import Container, ContainerStopped, SettingsError
from pytest_sandbox.container.processes import list_processes

pytestmark = pytest.mark.needs("containers")

SH = "/bin/sh"
GIGABYTE = 1 << 30


@contextlib.contextmanager
def own_popen(args, **keywords):
    """What ``box.popen`` is compared with."""
    with subprocess.Popen(args, **keywords) as popen:
        yield popen


@pytest.fixture(params=["subprocess", "container"])
def popen(request, box):
    """Each test that asks for it runs with subprocess itself too: it says what is right."""
    return subprocess.Popen if request.param == "subprocess" else box.popen


def test_a_living_process_polls_none_and_a_dead_one_its_status(popen):
    """poll() is None until the end, and the status from then on."""
    with popen(["cat"], stdin=PIPE) as p:
        assert (None, None) == (p.poll(), p.returncode)
        p.stdin.close()
        assert (0, 0, 0) == (p.wait(30), p.poll(), p.returncode)


@pytest.mark.parametrize("args", [[], ()])
def test_no_program_is_a_value_error(box, args):
    """An empty list of arguments is refused with the accepted form."""
    with pytest.raises(
        SettingsError,
        match=re.escape(f"args={args!r} is not valid; accepted: a program and its arguments"),
    ):
        box.popen(args)


def test_wait_runs_out_of_time(popen):
    """wait(timeout) raises TimeoutExpired with command and time, and the process goes on."""
    with popen(["cat"], stdin=PIPE) as p:
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            p.wait(0.05)
        assert (["cat"], 0.05, None) == (caught.value.cmd, caught.value.timeout, p.poll())
        p.stdin.close()
        assert 0 == p.wait(30)


def test_communicate_goes_on_after_its_time(popen):
    """communicate(timeout) can be called again, and nothing is lost."""
    with popen([SH, "-c", "echo early; exec sleep 60"], stdout=PIPE, text=True) as p:
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            p.communicate(timeout=0.3)
        assert b"early\n" == caught.value.output
        p.kill()
        assert ("early\n", None) == p.communicate()


@pytest.mark.parametrize(
    ("method", "number"), [("terminate", signal.SIGTERM), ("kill", signal.SIGKILL)]
)
def test_terminate_and_kill(popen, method, number):
    """Both send their signal, and the return code is its negative number."""
    with popen(["sleep", "60"]) as p:
        getattr(p, method)()
        assert -number == p.wait(30)


def test_a_signal_is_received(popen):
    """send_signal reaches a handler inside."""
    with popen(
        [SH, "-c", "trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.01; done"],
        stdout=PIPE,
        text=True,
    ) as p:
        assert "ready\n" == p.stdout.readline()
        p.send_signal(signal.SIGUSR1)
        assert ("caught\n", 5) == (p.communicate(timeout=30)[0], p.returncode)


def test_a_stopped_process_is_alive(popen):
    """SIGSTOP is no end: poll() is None, and SIGCONT lets it go on."""
    with popen(
        [SH, "-c", "echo ready; read line; exit 3"], stdin=PIPE, stdout=PIPE, text=True
    ) as p:
        assert "ready\n" == p.stdout.readline()
        p.send_signal(signal.SIGSTOP)
        with pytest.raises(subprocess.TimeoutExpired):
            p.wait(0.05)
        p.send_signal(signal.SIGCONT)
        p.stdin.write("\n")
        p.stdin.close()
        assert 3 == p.wait(30)


def test_signals_to_the_dead_do_nothing(popen):
    """terminate, kill and send_signal after the end are silent."""
    with popen(["true"]) as p:
        p.wait(30)
        p.terminate()
        p.kill()
        p.send_signal(signal.SIGUSR1)
        assert 0 == p.returncode


def test_leaving_the_block_closes_the_pipes_and_waits(popen):
    """The context manager closes stdin, so that a reader ends, and waits."""
    with popen(["cat"], stdin=PIPE, stdout=DEVNULL) as p:
        p.stdin.write(b"x")
    assert (0, True) == (p.returncode, p.stdin.closed)


def test_lines_come_as_they_are_written(popen):
    """A dialogue over both pipes works: nothing waits for the end."""
    with popen(
        [SH, "-c", 'while read line; do echo "got $line"; done'],
        stdin=PIPE,
        stdout=PIPE,
        text=True,
        bufsize=1,
    ) as p:
        for word in ("one", "two", "three"):
            p.stdin.write(f"{word}\n")
            assert f"got {word}\n" == p.stdout.readline()
        p.stdin.close()
        assert "" == p.stdout.read()


def test_a_grandchild_holds_the_pipe(popen):
    """wait() ends with the command; the pipe ends with the last that holds it."""
    with popen(
        [SH, "-c", "(read line; echo late) <&3 & echo soon"], stdin=PIPE, stdout=PIPE, text=True
    ) as p:
        assert ("soon\n", 0) == (p.stdout.readline(), p.wait(30))
        p.stdin.close()


def test_a_broken_pipe_is_the_writers_error(popen):
    """Writing to a process that has ended is BrokenPipeError."""
    with popen(["true"], stdin=PIPE, bufsize=0) as p:
        p.wait(30)
        with pytest.raises(BrokenPipeError):
            p.stdin.write(b"x" * 100_000)


def test_args_and_repr(popen):
    """Args are the caller's own, and repr shows them with the return code."""
    words = ["true"]
    with popen(words) as p:
        p.wait(30)
    assert (True, "<Popen: returncode: 0 args: ['true']>") == (p.args is words, repr(p))


def test_the_pid_is_one_outside(box):
    """Pid is the number that the caller's /proc shows; the process itself sees another."""
    with box.popen([SH, "-c", "echo $$; read line"], stdin=PIPE, stdout=PIPE, text=True) as p:
        inside = int(p.stdout.readline())
        with open(f"/proc/{p.pid}/status", encoding="utf-8") as file:
            numbers = next(line.split()[1:] for line in file if line.startswith("NSpid:"))
        assert [p.pid, inside] == [int(numbers[0]), int(numbers[-1])]
        assert inside == p.inside_pid
        p.stdin.close()


def test_every_process_leads_a_session_without_a_terminal(box):
    """The caller's terminal is out of reach: TIOCSTI and /dev/tty need a controlling one."""
    done = box.run(
        [SH, "-c", "read -r pid c s p g sid tty rest < /proc/self/stat; echo $tty; : < /dev/tty"],
        capture_output=True,
        text=True,
    )
    assert ("0\n", True) == (done.stdout, "/dev/tty" in done.stderr)


@pytest.mark.slow
def test_a_gigabyte_through_a_pipe(box):
    """A long stream comes through whole, in constant memory."""
    with box.popen(["head", "-c", str(GIGABYTE), "/dev/zero"], stdout=PIPE) as p:
        count = 0
        buffer = bytearray(1 << 20)
        while got := p.stdout.readinto(buffer):
            count += got
    assert (GIGABYTE, 0) == (count, p.returncode)


def test_a_slow_reader_holds_the_writer_back(box):
    """A pipe is a pipe: who writes more than it holds waits until it is read."""
    code = (
        "import os\nos.set_blocking(1, False)\nn = 0\ntry:\n while True: n += os.write(1, b'x' "
        "* 4096)\nexcept BlockingIOError: os.write(2, str(n).encode())"
    )
    with box.popen([sys.executable, "-c", code], stdout=PIPE, stderr=PIPE) as p:
        assert 0 < int(p.stderr.read()) <= 1 << 20


def test_fifty_at_once_from_threads(box):
    """Any number of threads can run commands in one container, each with its own answer."""
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        done = list(
            pool.map(
                lambda n: box.run([SH, "-c", f"echo {n}; exit {n}"], stdout=PIPE, text=True),
                range(50),
            )
        )
    assert [(n, f"{n}\n") for n in range(50)] == [(one.returncode, one.stdout) for one in done]


def test_fifty_at_once_from_asyncio(box):
    """asyncio.to_thread serves coroutines."""

    async def all_of_them():
        return await asyncio.gather(
            *(asyncio.to_thread(box.run, ["sh", "-c", f"exit {n}"]) for n in range(50))
        )

    assert list(range(50)) == [done.returncode for done in asyncio.run(all_of_them())]


def test_one_process_awaited_by_many_threads(box):
    """All waiters get the status."""
    with box.popen(["cat"], stdin=PIPE) as p, concurrent.futures.ThreadPoolExecutor(5) as pool:
        waits = [pool.submit(p.wait, 30) for _ in range(5)]
        p.stdin.close()
        assert [0] * 5 == [one.result() for one in waits]


def test_the_containers_end_ends_the_process(box):
    """close() while a process runs: it was killed, and communicate returns what it had written."""
    with Container() as c:
        p = c.popen([SH, "-c", "echo one; exec sleep 60"], stdout=PIPE)
        assert b"one\n" == p.stdout.readline()
        waiting = threading.Thread(target=p.wait)
        waiting.start()
    waiting.join(30)
    assert (b"", -signal.SIGKILL) == (p.communicate(timeout=30)[0], p.returncode)


def test_a_closed_container_starts_nothing():
    """Popen and run say ContainerStopped, and what to do."""
    c = Container().start()
    c.close()
    for start in (c.popen, c.run):
        with pytest.raises(ContainerStopped, match="make a new one"):
            start(["true"])


def test_a_process_outlives_nothing(box):
    """A daemon that double-forks away is reaped by the container's init: no zombies stay."""
    box.run([SH, "-c", "(sleep 0.05 &) ; exit 0"], check=True)
    with box.popen(["sleep", "0.2"]) as p:
        p.wait(30)
    assert [] == [
        line for _pid, line in list_processes(box.handle) if "sleep" in line or "defunct" in line
    ]


def settle() -> None:
    """Let go of what earlier tests dropped, so that it is not counted here."""
    gc.collect()
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.name.startswith("execnet"):
            thread.join(10)


def test_no_descriptors_are_left(box):
    """Two hundred runs later, the caller has as many descriptors and threads as before."""
    box.run(["true"])
    settle()
    before = (open_descriptors(), threading.active_count())
    for _ in range(100):
        box.run(["true"], capture_output=True)
        with contextlib.suppress(FileNotFoundError):
            box.run(["no-such-command"], capture_output=True)
    settle()
    assert before == (open_descriptors(), threading.active_count())


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_popen_that_nobody_waits_for(box):
    """Dropping a Popen of a living process leaves no descriptor behind once the process has
    ended.
    """
    with box.popen(["cat"], stdin=PIPE) as other:
        before = open_descriptors()
        p = box.popen(["cat"], stdin=PIPE)
        stdin = p.stdin
        del p
        stdin.close()
        other.stdin.write(b"x")
        while open_descriptors() > before:
            subprocess._cleanup()


def test_a_writer_that_never_stops_is_not_waited_for(box, tmp_path):
    """wait() ends with the command, although a process that it left behind goes on writing to the
    same file.
    """
    with (
        open(tmp_path / "out", "wb") as out,
        box.popen([SH, "-c", "echo first; yes & echo $!"], stdout=out) as p,
    ):
        assert 0 == p.wait(30)
        assert (tmp_path / "out").read_bytes().startswith(b"first\n")
        box.kill()
