"""What no one dares to test: the machine is gone afterwards. Its next test has a new one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from guestbook import book

# What is to be lost: all that this user could lose. Python and the project stay, or there would be nobody left to look.
EVERYTHING = ["/etc", "/home", "/opt", "/srv", "/usr/share", "/var"] if os.geteuid() == 0 else [str(Path.home())]


@pytest.fixture(autouse=True)
def prove_that_this_is_a_container():
    """Refuse to go on where more runs than the container's first process and this test."""
    processes = [folder.name for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    assert len(processes) == 2, "this is a real machine"


@pytest.mark.container(memory="256m")  # inside of a container also where somebody has switched off `sandbox`
def test_the_book_can_be_signed_when_all_else_is_lost():
    subprocess.run(["rm", "-rf", *EVERYTHING], check=False)
    shutil.rmtree(book.place().parent, ignore_errors=True)

    assert not any(any(Path(folder).iterdir()) for folder in EVERYTHING if Path(folder).exists())
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
