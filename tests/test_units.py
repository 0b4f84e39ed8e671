"""Sizes and times as text."""

from __future__ import annotations

import pytest

from pytest_sandbox import units


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1KiB"),
        (64 << 20, "64MiB"),
        (1536 << 20, "1.5GiB"),
        (1 << 62, "4096PiB"),
    ],
)
def test_a_size_has_docker_s_format(count, text):
    """A size is printed in its largest unit, a power of 1024, without a space."""
    assert text == units.size(count)


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "unknown"), (64 << 20, "64 MiB"), ((1 << 20) // 2, "0.5 MiB"), (0, "0 MiB")],
)
def test_a_size_in_mib(count, text):
    """A size in MiB has one decimal unless it is whole."""
    assert text == units.mib(count)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.3, "0 seconds"),
        (1, "1 second"),
        (59, "59 seconds"),
        (61, "1 minute"),
        (7300, "2 hours"),
        (90000, "1 day"),
    ],
)
def test_a_duration_has_one_unit(seconds, text):
    """A duration is printed in whole numbers of its largest unit."""
    assert text == units.duration(seconds)
