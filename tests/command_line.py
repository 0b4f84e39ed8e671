"""The command line in a process of its own, as a user runs it."""

from __future__ import annotations

import subprocess
import sys

__all__ = ["COMMAND", "output_of", "sandbox"]

COMMAND = [sys.executable, "-m", "pytest_sandbox"]


def sandbox(*args: str, **keywords: object) -> subprocess.CompletedProcess[str]:
    """Run the command line, and capture its output."""
    return subprocess.run(
        [*COMMAND, *args], capture_output=True, text=True, check=False, **keywords
    )


def output_of(*args: str, **keywords: object) -> str:
    """Return the standard output of a command line that succeeds."""
    done = sandbox(*args, **keywords)
    assert 0 == done.returncode, done.stderr
    return done.stdout
