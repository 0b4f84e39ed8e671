"""The traceback of a failed test does not show frames of this library."""

from __future__ import annotations

import pytest

SUITE = """
import os
import pytest

def test_command(container):
    container.run(["false"], check=True)

def test_missing(container):
    container.popen(["no-such-command"])

def test_call(container):
    container.call(os.unlink, "/no/such/file")

def test_file(container):
    container.read_text("/no/such/file")

@pytest.mark.container(memory="32m")
def test_memory(container):
    container.run(["sh", "-c", "x=$(head -c 100000000 /dev/zero | tr '\\\\0' x)"], check=True)
"""


@pytest.mark.needs("root", "memory")
def test_a_traceback_ends_at_the_line_of_the_test(pytester):
    """A report shows the test's line and the error, and no frame of this library."""
    pytester.makepyfile(SUITE)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(failed=5)
    frames = [line for line in result.outlines if line.startswith("/") and line.count(":") >= 2]
    assert [] == [line for line in frames if "pytest_sandbox" in line]
    result.stdout.fnmatch_lines(["*limit 32 MiB, peak 32 MiB*"])
