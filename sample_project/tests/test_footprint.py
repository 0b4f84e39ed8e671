"""A test with the fixture ``container`` runs outside, and checks what the program does inside."""

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
def test_a_book_can_be_read_on_a_read_only_root(container):
    done = container.run(
        [*GUESTBOOK, "read"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""


def test_stop_finds_only_the_server_inside(container):
    with container.popen([*GUESTBOOK, "serve"], cwd=PROJECT, text=True, stdout=-1) as inside:
        assert inside.stdout.readline() == "serving the guest book on port 8080\n"
        stopped = container.run(
            [*GUESTBOOK, "stop"], cwd=PROJECT, capture_output=True, text=True, check=True
        )
        assert stopped.stdout == "stopped 1\n"
