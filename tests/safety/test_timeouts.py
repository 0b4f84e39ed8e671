"""Commands that try to escape a timeout, a kill or a list of processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pytest_sandbox
from pytest_sandbox import Container, SandboxError
from pytest_sandbox.container.processes import list_processes

#: Seconds over a timeout within which every call returns, as docs/security.md promises.
GRACE = 2.0

# Ends its first thread and runs on in another one (exit(2) ends one thread).
FIRST_THREAD_ENDS = """
import ctypes, os, threading, time
def other():
    print("on", flush=True)
    time.sleep(600)
threading.Thread(target=other).start()
number = {"x86_64": 60, "aarch64": 93}[os.uname().machine]
ctypes.CDLL(None).syscall(number, 0)
"""

# Reads back what it has written, so that its reader finds no byte after poll(2) reported one.
TAKES_BACK = """
import os
reader = os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK)
while True:
    os.write(1, b"x")
    try: os.read(reader, 10)
    except BlockingIOError: pass
"""


def test_a_process_whose_first_thread_has_ended_is_listed_and_killed():
    """It is listed and killed, although /proc/PID/stat shows it as dead."""
    with Container() as c:
        popen = c.popen(
            [sys.executable, "-c", FIRST_THREAD_ENDS], stdout=subprocess.PIPE, text=True
        )
        with popen.stdout as output:
            assert "on\n" == output.readline()
            assert 1 == len(list_processes(c.handle))
            c.kill()
            assert -9 == popen.wait(GRACE)
            assert [] == list_processes(c.handle)


def test_a_command_that_reads_back_its_output_does_not_hang_the_reader():
    """The timeout of run() holds, although the pipe is empty when it is read."""
    with Container() as c:
        begun = time.monotonic()
        with pytest.raises(subprocess.TimeoutExpired):
            c.run([sys.executable, "-S", "-c", TAKES_BACK], capture_output=True, timeout=2)
        assert time.monotonic() - begun < 2 + GRACE


BLOCKED_STDOUT = """
import os, subprocess, sys, time
from pytest_sandbox import Container
reader, writer = os.pipe()
os.dup2(writer, 1)
with Container() as c:
    begun = time.monotonic()
    try: c.run(["sh", "-c", "yes"], timeout=1)
    except subprocess.TimeoutExpired: print(time.monotonic() - begun < 3.0, file=sys.stderr)
"""


def test_a_stdout_that_nobody_reads_does_not_hang_the_caller():
    """The timeout of run() holds while the caller's stdout is a full pipe."""
    env = {**os.environ, "PYTHONPATH": str(Path(pytest_sandbox.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED_STDOUT],
        check=False,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env=env,
    )
    assert "True\n" == done.stderr


@pytest.mark.needs("root", "unshare")
def test_a_timeout_reaches_nested_pid_namespaces():
    """Descendants of the command in a PID namespace of their own are killed, too."""
    with Container(privileged=True) as c:
        with pytest.raises(subprocess.TimeoutExpired):
            c.run(["unshare", "--pid", "--fork", "sh", "-c", "sleep 777; true"], timeout=1)
        deadline = time.monotonic() + GRACE
        while any("sleep 777" in line for _pid, line in list_processes(c.handle)):
            assert time.monotonic() < deadline


@pytest.mark.needs("root")
def test_what_is_mounted_over_proc_leads_to_no_process_of_the_host():
    """A privileged payload cannot make kill() end a process of the host."""
    victim = subprocess.Popen(["sleep", "600"])
    setup = f"""set -e
    mkdir /tmp/h; mount -t tmpfs none /tmp/h
    mkdir -p /tmp/h/1/ns; : > /tmp/h/1/ns/pid; mount --bind /proc/1/ns/pid /tmp/h/1/ns/pid
    ln -s /proc/{victim.pid} /tmp/h/2
    mount --rbind /tmp/h /proc"""
    try:
        with Container(privileged=True) as c:
            c.run(["sh", "-c", setup], check=True)
            for call in (c.kill, lambda: list_processes(c.handle)):
                with pytest.raises(SandboxError, match="something else is mounted there"):
                    call()
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


@pytest.mark.needs("root")
def test_a_fifo_over_a_file_of_proc_does_not_hang_the_caller():
    """A FIFO that a privileged payload mounts over a process's files is not opened."""
    with Container(privileged=True) as c:
        popen = c.popen(["sleep", "600"])
        c.run(
            [
                "sh",
                "-c",
                (
                    "mkfifo /tmp/f; for f in stat cmdline; do mount --bind /tmp/f "
                    f"/proc/{popen.inside_pid}/$f; done"
                ),
            ],
            check=True,
        )
        begun = time.monotonic()
        list_processes(c.handle)
        c.kill()
        assert time.monotonic() - begun < 2 * GRACE
