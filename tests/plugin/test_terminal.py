"""Debuggers and Ctrl-C in a session with a terminal."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.needs("root")


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
    """``--pdb`` and ``breakpoint()`` have the terminal and the test's frame, and suspend the
    timeout.
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
    """Ctrl-C ends the session as without a sandbox, and every process inside."""
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
