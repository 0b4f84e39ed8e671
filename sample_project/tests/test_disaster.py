"""What no one dares to test: the machine is gone afterwards. Its next test has a new one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from guestbook import book

# What would hurt most. Python and the project stay, or there would be nobody left to look.
OF_THE_MACHINE = [Path(name) for name in ("/boot", "/etc", "/usr/sbin", "/usr/share", "/var/log")]
OF_THE_USER = [Path.home() / name for name in (".bashrc", ".gnupg", ".profile", ".ssh")]


@pytest.fixture(autouse=True)
def prove_that_this_is_a_container():
    """Refuse to go on where more runs than the container's first process and this test."""
    processes = [
        directory.name for directory in Path("/proc").iterdir() if directory.name.isdigit()
    ]
    assert len(processes) == 2, "this is a real machine"


@pytest.mark.container(
    memory="256m"
)  # inside of a container also where somebody has switched off `sandbox`
def test_the_book_can_be_signed_when_all_else_is_lost():
    lost = [*OF_THE_USER, *(OF_THE_MACHINE if os.geteuid() == 0 else [])]
    subprocess.run(["rm", "-rf", *lost], check=False)

    assert not any(path.is_dir() and any(path.iterdir()) for path in lost)
    book.sign("Robinson", "Anybody there?")
    assert book.signatures()[0].name == "Robinson"


@pytest.mark.container(memory="256m")
def test_the_next_test_has_everything_again():
    assert Path("/etc/passwd").exists()
    assert book.signatures() == []


@pytest.mark.container(memory="256m", disk="8m")
def test_a_full_disk_is_told():
    with pytest.raises(OSError, match="No space left on device"):
        book.sign("Bore", "and then " * 1_000_000)
