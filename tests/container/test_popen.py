"""``Container.popen`` compared with ``subprocess.Popen``: pipes, signals, waiting, threads."""

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
    """Return the ``Popen`` with which ``box.popen`` is compared."""
    with subprocess.Popen(args, **keywords) as popen:
        yield popen


@pytest.fixture(params=["subprocess", "container"])
def popen(request, box):
    """Return ``box.popen``, and in a second run subprocess.Popen, which defines the right
    result.
    """
    return subprocess.Popen if request.param == "subprocess" else box.popen


def test_poll(popen):
    """poll() is None until the end, and the status afterwards."""
    with popen(["cat"], stdin=PIPE) as p:
        assert (None, None) == (p.poll(), p.returncode)
        p.stdin.close()
        assert (0, 0, 0) == (p.wait(30), p.poll(), p.returncode)


@pytest.mark.parametrize("args", [[], ()])
def test_an_empty_args_is_refused(box, args):
    """An empty list of arguments is refused with the accepted form."""
    with pytest.raises(
        SettingsError,
        match=re.escape(f"args={args!r} is not valid; accepted: a program and its arguments"),
    ):
        box.popen(args)


def test_wait_with_timeout(popen):
    """wait(timeout) raises TimeoutExpired with command and timeout, and the process goes on."""
    with popen(["cat"], stdin=PIPE) as p:
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            p.wait(0.05)
        assert (["cat"], 0.05, None) == (caught.value.cmd, caught.value.timeout, p.poll())
        p.stdin.close()
        assert 0 == p.wait(30)


def test_communicate_after_a_timeout(popen):
    """communicate() can be called again after its timeout, and no output is lost."""
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
    """The return code is the negative number of the signal."""
    with popen(["sleep", "60"]) as p:
        getattr(p, method)()
        assert -number == p.wait(30)


def test_send_signal(popen):
    """send_signal reaches a handler inside."""
    with popen(
        [SH, "-c", "trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.01; done"],
        stdout=PIPE,
        text=True,
    ) as p:
        assert "ready\n" == p.stdout.readline()
        p.send_signal(signal.SIGUSR1)
        assert ("caught\n", 5) == (p.communicate(timeout=30)[0], p.returncode)


def test_a_stopped_process_has_not_ended(popen):
    """poll() is None after SIGSTOP, and the process continues after SIGCONT."""
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


def test_signals_after_the_end_do_nothing(popen):
    """terminate, kill and send_signal after the end raise nothing."""
    with popen(["true"]) as p:
        p.wait(30)
        p.terminate()
        p.kill()
        p.send_signal(signal.SIGUSR1)
        assert 0 == p.returncode


def test_the_context_manager_closes_pipes_and_waits(popen):
    """The end of the block closes stdin, so that a reader ends, and waits for the process."""
    with popen(["cat"], stdin=PIPE, stdout=DEVNULL) as p:
        p.stdin.write(b"x")
    assert (0, True) == (p.returncode, p.stdin.closed)


def test_lines_are_read_as_they_are_written(popen):
    """Both pipes can be used in turn while the process runs."""
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


def test_a_grandchild_keeps_the_pipe_open(popen):
    """wait() returns at the command's end; the pipe ends when the last process has closed it."""
    with popen(
        [SH, "-c", "(read line; echo late) <&3 & echo soon"], stdin=PIPE, stdout=PIPE, text=True
    ) as p:
        assert ("soon\n", 0) == (p.stdout.readline(), p.wait(30))
        p.stdin.close()


def test_writing_to_an_ended_process_is_broken_pipe(popen):
    """Writing to a process that has ended raises BrokenPipeError."""
    with popen(["true"], stdin=PIPE, bufsize=0) as p:
        p.wait(30)
        with pytest.raises(BrokenPipeError):
            p.stdin.write(b"x" * 100_000)


def test_args_and_repr(popen):
    """``args`` is as given, and repr() has the return code."""
    words = ["true"]
    with popen(words) as p:
        p.wait(30)
    assert (True, "<Popen: returncode: 0 args: ['true']>") == (p.args is words, repr(p))


def test_pid_is_the_pid_outside(box):
    """``pid`` is in the caller's /proc; the process sees another PID."""
    with box.popen([SH, "-c", "echo $$; read line"], stdin=PIPE, stdout=PIPE, text=True) as p:
        inside = int(p.stdout.readline())
        with open(f"/proc/{p.pid}/status", encoding="utf-8") as file:
            numbers = next(line.split()[1:] for line in file if line.startswith("NSpid:"))
        assert [p.pid, inside] == [int(numbers[0]), int(numbers[-1])]
        assert inside == p.inside_pid
        p.stdin.close()


def test_a_process_has_no_controlling_terminal(box):
    """A process cannot use TIOCSTI or /dev/tty on the caller's terminal, since it has no
    controlling one.
    """
    done = box.run(
        [SH, "-c", "read -r pid c s p g sid tty rest < /proc/self/stat; echo $tty; : < /dev/tty"],
        capture_output=True,
        text=True,
    )
    assert ("0\n", True) == (done.stdout, "/dev/tty" in done.stderr)


@pytest.mark.slow
def test_a_gigabyte_through_a_pipe(box):
    """A long stream is read complete, in constant memory."""
    with box.popen(["head", "-c", str(GIGABYTE), "/dev/zero"], stdout=PIPE) as p:
        count = 0
        buffer = bytearray(1 << 20)
        while got := p.stdout.readinto(buffer):
            count += got
    assert (GIGABYTE, 0) == (count, p.returncode)


def test_a_full_pipe_blocks_the_writer(box):
    """A process that writes more than a pipe holds waits for the reader."""
    code = (
        "import os\nos.set_blocking(1, False)\nn = 0\ntry:\n while True: n += os.write(1, b'x' "
        "* 4096)\nexcept BlockingIOError: os.write(2, str(n).encode())"
    )
    with box.popen([sys.executable, "-c", code], stdout=PIPE, stderr=PIPE) as p:
        assert 0 < int(p.stderr.read()) <= 1 << 20


def test_commands_from_several_threads(box):
    """Threads run commands in one container at the same time, and each gets its own output."""
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        done = list(
            pool.map(
                lambda n: box.run([SH, "-c", f"echo {n}; exit {n}"], stdout=PIPE, text=True),
                range(50),
            )
        )
    assert [(n, f"{n}\n") for n in range(50)] == [(one.returncode, one.stdout) for one in done]


def test_commands_from_asyncio(box):
    """Commands can be run by asyncio.to_thread."""

    async def all_of_them():
        return await asyncio.gather(
            *(asyncio.to_thread(box.run, ["sh", "-c", f"exit {n}"]) for n in range(50))
        )

    assert list(range(50)) == [done.returncode for done in asyncio.run(all_of_them())]


def test_wait_from_several_threads(box):
    """All threads that wait for a process get its status."""
    with box.popen(["cat"], stdin=PIPE) as p, concurrent.futures.ThreadPoolExecutor(5) as pool:
        waits = [pool.submit(p.wait, 30) for _ in range(5)]
        p.stdin.close()
        assert [0] * 5 == [one.result() for one in waits]


def test_close_kills_a_process(box):
    """close() kills a running process, and communicate() returns what it had written."""
    with Container() as c:
        p = c.popen([SH, "-c", "echo one; exec sleep 60"], stdout=PIPE)
        assert b"one\n" == p.stdout.readline()
        waiting = threading.Thread(target=p.wait)
        waiting.start()
    waiting.join(30)
    assert (b"", -signal.SIGKILL) == (p.communicate(timeout=30)[0], p.returncode)


def test_a_closed_container_refuses_commands():
    """popen() and run() raise ContainerStopped with a remedy."""
    c = Container().start()
    c.close()
    for start in (c.popen, c.run):
        with pytest.raises(ContainerStopped, match="make a new one"):
            start(["true"])


def test_daemons_are_reaped(box):
    """A daemon that forks twice is reaped by the container's init and leaves no zombie."""
    box.run([SH, "-c", "(sleep 0.05 &) ; exit 0"], check=True)
    with box.popen(["sleep", "0.2"]) as p:
        p.wait(30)
    assert [] == [
        line for _pid, line in list_processes(box.handle) if "sleep" in line or "defunct" in line
    ]


def close_dropped() -> None:
    """Close what earlier tests have dropped, so that it is not counted here."""
    gc.collect()
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.name.startswith("execnet"):
            thread.join(10)


def test_no_descriptor_is_left(box):
    """After two hundred runs, the caller has as many descriptors and threads as before."""
    box.run(["true"])
    close_dropped()
    before = (open_descriptors(), threading.active_count())
    for _ in range(100):
        box.run(["true"], capture_output=True)
        with contextlib.suppress(FileNotFoundError):
            box.run(["no-such-command"], capture_output=True)
    close_dropped()
    assert before == (open_descriptors(), threading.active_count())


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_dropped_popen_leaves_no_descriptor(box):
    """A Popen that is dropped while its process runs leaves no descriptor after the process has
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


def test_wait_does_not_wait_for_an_endless_writer(box, tmp_path):
    """wait() returns at the command's end although a process that it left behind goes on writing to
    the same file.
    """
    with (
        open(tmp_path / "out", "wb") as out,
        box.popen([SH, "-c", "echo first; yes & echo $!"], stdout=out) as p,
    ):
        assert 0 == p.wait(30)
        assert (tmp_path / "out").read_bytes().startswith(b"first\n")
        box.kill()
