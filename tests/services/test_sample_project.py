"""The system of several services in sample_project/services."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = Path(__file__).parents[2] / "sample_project"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("root", "pg_ctlcluster", "redis-server"),
]


def run(directory, *arguments):
    """Run pytest there, and return its last line and its whole output."""
    pytest.importorskip("psycopg")
    pytest.importorskip("redis")
    plugins = ["-p", "sandbox", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, "-q", *arguments, "services"],
        cwd=directory,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    return done.stdout.splitlines()[-1], done.stdout + done.stderr


def test_the_shop_passes_on_a_network_that_fails():
    """Its API retries until its database is back."""
    last, output = run(SAMPLE)
    assert last.startswith("7 passed"), output


def test_a_shop_that_does_not_retry_fails(tmp_path):
    """Without its retry code, the tests of broken connections and partitions find it."""
    copy = tmp_path / "sample_project"
    shutil.copytree(SAMPLE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "services/shop/retry.py").write_text(
        "def retry(action, errors, *, seconds):\n    return action()\n"
    )
    last, output = run(copy, "-k", "partition or broken or stock")
    assert last.startswith("2 failed, 1 passed"), output
    assert "HTTP Error 503" in output
