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
        """Read until a text has come; return what came before it."""
        end = time.monotonic() + seconds
        while what not in self.text:
            assert select.select([self.fd], [], [], max(0, end - time.monotonic()))[0], self.text
            try:
                self.text += os.read(self.fd, 4096).decode(errors="replace")
            except OSError:
                break
        assert what in self.text, self.text
        before, _, self.text = self.text.partition(what)
        return before

    def type(self, line):
        os.write(self.fd, line.encode() + b"\n")

    def end(self, status):
        assert status == self.process.wait(60)
        os.close(self.fd)


@pytest.mark.parametrize(
    "options",
    [
        ["--sandbox-timeout=2"],
        ["--sandbox-fresh"],
        ["--sandbox-scope=module"],
        ["--sandbox-scope=module", "--sandbox-fresh", "--sandbox-jobs=2"],
    ],
    ids=" ".join,
)
def test_the_debugger_has_the_terminal(run, pytester, options):
    """``--pdb`` and ``breakpoint()`` have the terminal and the test's frame, and suspend the
    timeout; also in a new interpreter, and in a container that tests share.
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
    terminal = Terminal("--pdb", *options)
    terminal.expect("(Pdb) ")
    terminal.type("p 'parent', here")
    terminal.expect("('parent', 0)")
    if options == ["--sandbox-timeout=2"]:
        terminal.type("import time; time.sleep(3)")
    terminal.type("c")
    terminal.expect("entering PDB")
    terminal.expect("(Pdb) ")
    terminal.type("p there")
    terminal.expect("'inside'")
    terminal.type("q")
    terminal.expect("1 failed, 1 passed")
    terminal.process.wait(60)


@pytest.mark.parametrize("options", [(), ("--sandbox-fresh",), ("--sandbox-scope=module",)])
def test_trace_stops_at_the_start_of_each_test(run, pytester, options):
    """``--trace`` has the terminal in each test."""
    pytester.makepyfile("def test_one(): a = 1\ndef test_two(): b = 2\n")
    terminal = Terminal("--trace", *options)
    for line in ("a = 1", "b = 2"):
        terminal.expect(f"-> def test_{'one' if line[0] == 'a' else 'two'}(): {line}")
        terminal.expect("(Pdb) ")
        terminal.type("c")
    terminal.expect("2 passed")
    terminal.process.wait(60)


def test_one_debugger_at_a_time_has_the_terminal(run, pytester):
    """Tests that reach ``breakpoint()`` at the same time get the terminal one after the other, and
    the timeout of the one that waits is suspended.
    """
    pytester.makepyfile("""
    import pytest
    @pytest.mark.parametrize("number", range(3))
    def test(number):
        found = number * 1001
        breakpoint()
        print("after", found)
    """)
    terminal = Terminal("--sandbox-jobs=3", "--sandbox-timeout=5", "-pno:cacheprovider")
    for wait in (4, 4, 0):
        terminal.expect("(Pdb) ")
        time.sleep(wait)  # longer, in all, than the timeout: no event tells that it has not come
        terminal.type("p 'found', found % 1001")
        assert "(Pdb)" not in terminal.expect("('found', 0)")
        terminal.expect("(Pdb) ")
        terminal.type("c")
    terminal.expect("3 passed")
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
