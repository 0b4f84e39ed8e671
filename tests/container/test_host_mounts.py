"""What the host has mounted, as containers see it: nothing below it reaches the host."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.needs("containers", "root", "unshare"), pytest.mark.vm]


@pytest.fixture
def in_mounts(tmp_path):
    """Run a shell script and then Python code in a mount namespace of their own; return what the code prints.

    Both run in ``tmp_path``.
    """

    def run(script: str, code: str) -> str:
        command = ["unshare", "-m", "sh", "-ec", f'{script}\nexec "$0" -c "$1"', sys.executable, code]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert (0, "") == (done.returncode, done.stderr)
        return done.stdout

    return run


@pytest.mark.parametrize("octal", [r"a\014b", r"caf\351", r"a b\nc", r"x,y:z\\w"])
def test_a_mount_with_an_unusual_path_is_one_like_any_other(in_mounts, octal):
    """What is mounted there can be read and written inside, and the host's file stays as it is."""
    script = f'name=$(printf \'{octal}\'); mkdir "$name"; mount -t tmpfs none "$name"; echo hosts > "$name/file"'
    code = """
import os
from pytest_sandbox import Container
(name,) = os.listdir(".")
path = os.path.abspath(f"{name}/file")
with Container() as c:
    c.run(["sh", "-c", 'cat "$0"; echo ours > "$0"', path], check=True)
    print([change.kind for change in c.diff() if change.path == path], open(path).read())
"""
    assert "hosts\n['modified'] hosts\n\n" == in_mounts(script, code)
