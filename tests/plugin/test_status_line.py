"""The line that names running tests, on a terminal of tmux(1)."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.needs("root", "tmux")

WAITING = """
import time
import pytest
@pytest.mark.parametrize("name", ["a", "b", "\u00e4"])
def test(name):
    time.sleep(5)
"""


class Screen:
    """A terminal of 100 x 12, in which a shell runs."""

    def __init__(self, directory):
        self._tmux = ["tmux", "-S", str(directory / "tmux"), "-f", "/dev/null"]
        self._call("new-session", "-d", "-x", "100", "-y", "12", "sh")

    def _call(self, *arguments):
        return subprocess.run(
            [*self._tmux, *arguments], check=True, capture_output=True, text=True, timeout=30
        ).stdout

    def run(self, *command):
        self._call("send-keys", f"clear; {shlex.join(command)}; echo status $?", "Enter")

    def expect(self, what):
        """Return the lines of the screen once they contain this text."""
        end = time.monotonic() + 60
        while what not in (text := self._call("capture-pane", "-p")):
            assert time.monotonic() < end, text
            time.sleep(0.05)
        return text.splitlines()

    def close(self):
        self._call("kill-server")


@pytest.fixture
def screen(tmp_path):
    screen = Screen(tmp_path)
    yield screen
    screen.close()


def pytest_command(*options):
    return (sys.executable, "-m", "pytest", "-p", "sandbox", "--sandbox", *options)


@pytest.mark.parametrize("lines_before", [0, 20])
def test_below_the_progress(run, pytester, screen, lines_before):
    """The line appears below the one with the progress, also at the end of the screen, and nothing
    is left of it.
    """
    pytester.makepyfile(WAITING)
    (pytester.path / "conftest.py").write_text(
        f"def pytest_report_header(config): return ['line'] * {lines_before}"
    )
    screen.run(*pytest_command("--sandbox-jobs=2", str(pytester.path)))
    lines = screen.expect("running 2: ")
    (at,) = (n for n, line in enumerate(lines) if line.startswith("running 2: "))
    assert "[a], " in lines[at]
    assert "[b]" in lines[at]
    assert len(lines[at]) <= 99
    lines = screen.expect(r"running 1: test_below_the_progress.py::test[\xe4]")
    (at,) = (n for n, line in enumerate(lines) if line.startswith("running 1: "))
    assert lines[at - 1] == "test_below_the_progress.py .."
    lines = screen.expect("status 0")
    assert not [line for line in lines if "running" in line]
    (progress,) = (line for line in lines if line.endswith("[100%]"))
    assert progress.startswith("test_below_the_progress.py ...")


@pytest.mark.parametrize("options", [["--sandbox-jobs=1"], ["--sandbox-jobs=2", "-q"]])
def test_no_status_line(run, pytester, screen, options):
    """With one job, and with -q, no line appears."""
    pytester.makepyfile(WAITING)
    screen.run(*pytest_command(*options, "--sandbox-slow=1.5", str(pytester.path)))
    lines = screen.expect("has run for 1.5 s")
    assert not [line for line in lines if line.startswith("running")]
    screen.expect("status 0")
