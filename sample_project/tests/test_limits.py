"""Only tests that exceed their limits fail. An outer test runs each, and checks the report."""

from __future__ import annotations

import pytest

# An outer test starts pytest, which creates containers, so it has to run outside.
pytestmark = pytest.mark.no_sandbox

GREEDY = """
    import pytest

    @pytest.mark.container(memory="32m")
    def test_reads_the_whole_book_at_once():
        book = bytearray(500_000_000)

    def test_comes_after():
        pass
"""

ENDLESS = """
    import pytest

    @pytest.mark.container(timeout=0.5)
    def test_waits_for_a_visitor():
        while True:
            pass

    def test_comes_after():
        pass
"""


def test_a_test_over_its_memory_fails_and_the_next_one_runs(pytester):
    pytester.makepyfile(GREEDY)
    result = pytester.runpytest_subprocess("--sandbox", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*memory*limit 32 MiB*"])


def test_a_test_that_never_ends_is_ended(pytester):
    pytester.makepyfile(ENDLESS)
    result = pytester.runpytest_subprocess("--sandbox", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*timeout*0.5 s*"])
