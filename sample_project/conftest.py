"""What the tests share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = ["pytester"]  # for tests/test_limits.py, which looks at tests that fail

PROJECT = Path(__file__).parent


@pytest.fixture
def server() -> Iterator[subprocess.Popen[str]]:
    """A guest book of this test's own, on the one port that it knows."""
    with subprocess.Popen(
        [sys.executable, "-m", "guestbook", "serve"], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "the guest book lies open on port 8080\n"
        yield process
        process.terminate()
