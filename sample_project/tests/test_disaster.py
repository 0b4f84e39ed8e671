"""Tests that destroy the machine. The next test has a new one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from guestbook import book

# Python and the project stay, because the test needs them.
OF_THE_MACHINE = [Path(name) for name in ("/boot", "/etc", "/usr/sbin", "/usr/share", "/var/log")]
OF_THE_USER = [Path.home() / name for name in (".bashrc", ".gnupg", ".profile", ".ssh")]


@pytest.fixture(autouse=True)
def prove_that_this_is_a_container():
    """Fail if there are other processes than the container's init and this test."""
    processes = [
        directory.name for directory in Path("/proc").iterdir() if directory.name.isdigit()
    ]
    assert len(processes) == 2, "this is a real machine"


@pytest.mark.container(memory="256m")  # runs inside also with `sandbox = false`
def test_the_book_can_be_signed_on_a_destroyed_machine():
    lost = [*OF_THE_USER, *(OF_THE_MACHINE if os.geteuid() == 0 else [])]
    subprocess.run(["rm", "-rf", *lost], check=False)

    assert not any(path.is_dir() and any(path.iterdir()) for path in lost)
    book.sign("Robinson", "Anybody there?")
    assert book.signatures()[0].name == "Robinson"


@pytest.mark.container(memory="256m")
def test_the_next_test_has_a_new_machine():
    assert Path("/etc/passwd").exists()
    assert book.signatures() == []


@pytest.mark.container(memory="256m", disk="8m")
def test_a_full_disk_is_an_error():
    with pytest.raises(OSError, match="No space left on device"):
        book.sign("Bore", "and then " * 1_000_000)
