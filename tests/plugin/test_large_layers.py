"""Tests that write deep trees, long names or many files do not slow down or end the session."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.needs("root", "limits")

DEEP = """
    import os, pytest

    def dig(name, depth):
        os.chdir("/opt")
        for _ in range(depth):
            os.mkdir(name)
            os.chdir(name)
        os.chdir("/")

    def test_long_names():
        dig("d" * 200, 1000)
        assert 0

    def test_passes_with_long_names():
        dig("d" * 200, 1000)

    @pytest.mark.container(storage="disk")
    def test_on_disk():
        dig("d", 3000)

    def test_after(): pass
"""


def test_changes_in_deep_trees_are_truncated(run):
    """The report of a failed test has the first changes with truncated paths, and a count; other
    tests pass.
    """
    result = run(DEEP)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        ["C /opt", "A /opt/ddd*", "A /opt/ddd*... (* characters)", "... and at least * more"]
    )
    assert max(len(line) for line in result.outlines) < 2000
    assert [] == result.errlines


def test_the_search_for_changes_is_bounded(run):
    """The report of a test that is killed while it creates files has the first of them."""
    result = run(
        """
    import itertools, os, pytest
    @pytest.mark.container(timeout=5)
    def test():
        os.mkdir("/opt/many")
        for number in itertools.count():
            os.close(os.open(f"/opt/many/{number:0240}", os.O_CREAT))
    """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "timeout: still running after 5 s*",
            "C /opt",
            "A /opt/many",
            "A /opt/many/000*",
            "... and * more",
        ]
    )
