"""The fixtures of all tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = ["pytester"]  # for tests/test_limits.py, which runs failing tests

PROJECT = Path(__file__).parent


@pytest.fixture
def server() -> Iterator[subprocess.Popen[str]]:
    """Start a server with an empty guest book on its fixed port."""
    with subprocess.Popen(
        [sys.executable, "-m", "guestbook", "serve"], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "serving the guest book on port 8080\n"
        yield process
        process.terminate()
