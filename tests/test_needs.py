from __future__ import annotations

import os

import pytest
from capabilities import has

SUITE = """
    import pytest

    @pytest.mark.needs("a-program-that-nobody-has")
    def test_needy(): pass

    def test_skipping(): pytest.skip("for once")

    def test_plain(): pass
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, request: pytest.FixtureRequest) -> pytest.Pytester:
    for name in ("conftest.py", "tests/conftest.py"):
        (pytester.path / name).parent.mkdir(exist_ok=True)
        (pytester.path / name).write_text((request.config.rootpath / name).read_text())
    pytester.makeini("[pytest]\nmarkers = needs(*capabilities): needed")
    pytester.mkdir("tests/part")
    (pytester.path / "tests/part/test_suite.py").write_text(
        "\n".join(line[4:] for line in SUITE.splitlines())
    )
    return pytester


@pytest.mark.vm
def test_the_probe_for_root_agrees_with_the_kernel():
    """The effective UID decides whether "root" or "user" is found."""
    assert (has("root"), has("user")) == (os.geteuid() == 0, os.geteuid() != 0)


def test_a_missing_capability_skips(suite):
    """Without --host-has, a test that needs a missing capability is skipped."""
    suite.runpytest("tests").assert_outcomes(passed=1, skipped=2)


def test_a_lane_fails_on_a_skip(suite):
    """With --host-has, a test that skips itself fails, and one that needs more is deselected."""
    suite.runpytest("tests", "--host-has=root").assert_outcomes(passed=1, failed=1, deselected=1)


def test_a_promised_capability_is_not_probed(suite):
    """A test that needs a promised capability runs without probing."""
    suite.runpytest("tests", "--host-has=a-program-that-nobody-has").assert_outcomes(
        passed=2, failed=1
    )
