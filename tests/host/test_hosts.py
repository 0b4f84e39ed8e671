"""A table of hosts: on each, what the doctor says is what happens, and nothing ends in a
traceback.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from simulated_hosts import HOSTS, wrapped

pytestmark = pytest.mark.needs("root", "plain_root")

COMPARE = str(Path(__file__).with_name("compare.py"))
#: What the doctor suggests on hosts without containers; they work on the others.
WITHOUT = {
    "sethostname_denied": "--security-opt seccomp=unconfined",
    "docker_policy": "--security-opt seccomp=unconfined",
    "no_proc": "mount -t proc proc /proc",
    "no_user_namespaces": "sysctl -w user.max_user_namespaces=15000",
    "no_network_namespaces": "sysctl -w user.max_net_namespaces=15000",
    "no_mount_namespaces": "sysctl -w user.max_mnt_namespaces=15000",
    "root_on_two_overlays": "two levels of containers",
    "no_state_directory": "mount a tmpfs on /run or /tmp",
}
#: Where pytest itself cannot start, and where it has more processes left than the doctor.
APART = {"deleted_directory", "process_limit"}
ERRORS = ("UnsupportedError", "SetupError", "ImageError", "could not enter", "not supported here")


def on(name: str) -> tuple[dict[str, dict[str, Any]], list[str], dict[str, str], str]:
    """Return the doctor's rows, what ``run`` printed, the suite's failures by row, and what was
    printed altogether.
    """
    done = subprocess.run(
        wrapped(name, sys.executable, COMPARE),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.stdout.strip(), done.stderr
    doctor, run, failures, printed = json.loads(done.stdout.strip().splitlines()[-1])
    rows = {row["name"]: row for row in json.loads(doctor[0])}
    return rows, run, failures, "\n".join([doctor[1], run[1], printed, done.stderr])


@pytest.mark.parametrize("name", sorted(HOSTS.keys() - APART))
def test_the_doctor_says_what_happens(name):
    """Each row is found if and only if a suite can use it, and a failure is an error of this
    library's, with a remedy.
    """
    rows, run, failures, printed = on(name)
    found = {row: rows[row]["found"] for row in failures}
    assert {row: not text for row, text in failures.items()} == found
    assert (rows["run"]["found"], "ran\n") == (run[0] == "ran\n", run[0] or "ran\n")
    assert "Traceback (most recent call last)" not in printed
    assert [] == [text for text in failures.values() if text and not any(e in text for e in ERRORS)]
    assert [] == [row["name"] for row in rows.values() if not row["found"] and not row["remedy"]]
    assert WITHOUT.get(name, "") in rows["test body"]["remedy"]
    assert (name not in WITHOUT) == rows["test body"]["found"]


def test_a_deleted_working_directory():
    """The error says so: neither pytest nor a command can start there."""
    command = [sys.executable, "-m", "pytest_sandbox", "run", "host", "true"]
    done = subprocess.run(
        wrapped("deleted_directory", *command), capture_output=True, text=True, check=False
    )
    assert "find the working directory: it was deleted" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_limit_on_processes():
    """The error names what limits them, in the report as in a test."""
    rows, run, failures, printed = on("process_limit")
    assert "ulimit -u" in failures["test body"]
    assert "ulimit -u" in run[1]
    assert [False] == [row["found"] for row in rows.values() if row["needed"]][:1]
    assert "Traceback (most recent call last)" not in printed


def test_a_test_that_ran_too_long_shows_its_stack(tmp_path):
    """Also if the caller has blocked all signals, and without waiting for the stack in vain."""
    suite = tmp_path / "test_slow.py"
    suite.write_text(
        "import time, pytest\n@pytest.mark.container(timeout=1)\ndef test_it(): time.sleep(60)\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--sandbox", str(suite)]
    done = subprocess.run(
        wrapped("signals_blocked", *command), capture_output=True, text=True, check=False
    )
    assert f'File "{suite}", line 3 in test_it' in done.stdout


#: Writes, renames and removes each file that docker mounts, in a test body.
CHANGE = """
import os
from pathlib import Path
def test_it():
    for name in ("hosts", "hostname", "resolv.conf"):
        path = Path("/etc", name)
        if not path.exists():
            continue
        with path.open("a") as file:
            file.write("# more")
        assert path.read_text().endswith("# more")
        path.rename("/etc/renamed")
        path.write_text("new")
        os.replace("/etc/renamed", path)
        path.unlink()
        assert not path.exists()
"""


@pytest.mark.parametrize("name", ["docker_files", "docker_files_rootless"])
def test_files_that_are_mounts_can_be_changed(tmp_path, name):
    """A test inside writes, renames and removes them, and the host's files stay."""
    before = [path.read_bytes() for path in sorted(Path("/etc").glob("host*")) if path.is_file()]
    suite = tmp_path / "test_files.py"
    suite.write_text(CHANGE)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--sandbox", str(suite)]
    done = subprocess.run(
        wrapped(name, *command),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed" in done.stdout, done.stdout
    after = [path.read_bytes() for path in sorted(Path("/etc").glob("host*")) if path.is_file()]
    assert before == after
