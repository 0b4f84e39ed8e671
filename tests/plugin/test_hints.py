"""Hints: what isolation has to do with a failure, said in the report."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.needs("containers", "memory")

CHILD = """
import subprocess, sys
def hog():
    return subprocess.run([sys.executable, "-c", "x = bytearray(200 << 20)"]).returncode
"""


def test_a_child_that_was_killed_for_memory_is_a_hint(run, reports):
    """A test that fails over a child's SIGKILL is told that the kernel killed it for memory, and
    which setting allows more.
    """
    run(f"{CHILD}\ndef test_child(): assert 0 == hog()", "--sandbox-memory=64m").assert_outcomes(
        failed=1
    )
    (report,) = [one for one in reports() if one["outcome"] == "failed"]
    hint = dict(report["sections"])["hint"]
    assert (
        "Out of memory: the kernel killed a process inside. The container may use 64 MiB "
        "(memory=), and its peak was 64" in hint
    )


def test_a_test_that_passes_has_no_hint(run, reports):
    """A kill that the test expects is a figure in its report, and no more."""
    run(f"{CHILD}\ndef test_child(): assert -9 == hog()", "--sandbox-memory=64m").assert_outcomes(
        passed=1
    )
    assert [] == [one for one in reports() if "hint" in dict(one["sections"])]
