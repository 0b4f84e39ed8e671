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
    pytester.mkdir("tests/room")
    (pytester.path / "tests/room/test_suite.py").write_text(
        "\n".join(line[4:] for line in SUITE.splitlines())
    )
    return pytester


@pytest.mark.vm
def test_the_probe_for_root_agrees_with_the_kernel():
    """Exactly one of "root" and "user" is found, and it is the one that the kernel says."""
    assert (has("root"), has("user")) == (os.geteuid() == 0, os.geteuid() != 0)


def test_a_lacking_capability_skips(suite):
    """Without a lane's promise, what the host lacks is skipped and the rest runs."""
    suite.runpytest("tests").assert_outcomes(passed=1, skipped=2)


def test_a_lane_fails_on_a_skip(suite):
    """Where the lane says what its host has, a test that skips itself counts as failed, and what
    needs more is deselected.
    """
    suite.runpytest("tests", "--host-has=root").assert_outcomes(passed=1, failed=1, deselected=1)


def test_a_lane_whose_host_lost_a_capability_does_not_skip(suite):
    """What the lane promises runs, found or not, so that losing it is seen."""
    suite.runpytest("tests", "--host-has=a-program-that-nobody-has").assert_outcomes(
        passed=2, failed=1
    )
