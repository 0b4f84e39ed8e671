"""``pytest-sandbox run``: docker's flags and statuses."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.needs("containers"), pytest.mark.vm]


def run(*words: str, **keywords: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pytest_sandbox", "run", *words], capture_output=True, text=True, check=False, **keywords)


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["sh", "-c", "kill -15 $$"], 143),
        (["no-such-command"], 127),
        (["/etc/passwd"], 126),
        (["/etc"], 126),
    ],
    ids=str,
)
def test_the_status_is_the_commands_own(command, status):
    """A shell script cannot tell the container from the command; 126 and 127 are what a shell says."""
    assert status == run("host", *command).returncode
