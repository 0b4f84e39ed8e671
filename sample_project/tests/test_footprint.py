"""Ask for the container and you hold it: the test stays outside, and looks at what the program does
in there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pytest_sandbox import Change

PROJECT = Path(__file__).parents[1]
GUESTBOOK = [sys.executable, "-B", "-m", "guestbook"]


def test_signing_writes_one_file_and_its_directory(container):
    container.run(
        [*GUESTBOOK, "sign", "Ada", "I was here."],
        cwd=PROJECT,
        env={"HOME": "/var/tmp"},
        check=True,
    )

    assert [
        Change("/var", "modified"),
        Change("/var/tmp", "modified"),
        Change("/var/tmp/.guestbook", "added"),
        Change("/var/tmp/.guestbook/signatures", "added"),
    ] == container.diff()


@pytest.mark.container(read_only=True)
def test_a_book_can_be_read_where_nothing_can_be_written(container):
    done = container.run(
        [*GUESTBOOK, "read"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""


def test_the_host_never_sees_the_server(container):
    with container.popen([*GUESTBOOK, "serve"], cwd=PROJECT, text=True, stdout=-1) as inside:
        assert inside.stdout.readline() == "the guest book lies open on port 8080\n"
        stopped = container.run(
            [*GUESTBOOK, "stop"], cwd=PROJECT, capture_output=True, text=True, check=True
        )
        assert stopped.stdout == "stopped 1\n"
