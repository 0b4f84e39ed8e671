"""Patterns of paths."""

from __future__ import annotations

import pytest

from pytest_sandbox.container.path_patterns import Pattern, Patterns, fixed_parts


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("a/**", ["/r/a/b", "/r/a/b/c"], ["/r/a", "/r/b", "/a/b"]),
        ("**/*.png", ["/r/x.png", "/r/a/.b/x.png", "/r/x.png/y"], ["/r/a/x.txt", "/x.png"]),
        ("a", ["/r/a", "/r/a/b/c"], ["/r/ab", "/r"]),
        ("a/**/b/*.[xy]", ["/r/a/b/c.x", "/r/a/q/w/b/c.y"], ["/r/a/c.x", "/r/a/b/c.z"]),
        ("**", ["/r/q", "/r/q/r"], ["/r", "/q"]),
        ("?", ["/r/q"], ["/r/qq"]),
    ],
)
def test_a_pattern_selects_paths(pattern, matching, other):
    """A name in a pattern matches one name of a path, ``**`` any number of them."""
    patterns = Patterns([Pattern.below("/r", pattern)])
    assert matching == [path for path in (*matching, *other) if patterns.match(path) == 0]


def test_the_first_of_several_patterns_counts():
    """A path that several patterns select belongs to the first."""
    patterns = Patterns([Pattern.below("/a", "*.x"), Pattern.below("/a", "b.*")])
    assert [0, 1, None] == [patterns.match(one) for one in ("/a/b.x", "/a/b.y", "/a/c.y")]


def test_many_directories_take_no_exponential_time():
    """A path of a thousand names is matched against twenty times ``**`` in a moment."""
    patterns = Patterns([Pattern.below("/r", "**/a/" * 20 + "b")])
    assert patterns.match("/r" + "/a" * 1000) is None


@pytest.mark.parametrize(
    ("pattern", "count"), [("a/b/*.x", 2), ("**", 0), ("a", 0), ("/a/b", 1), ("a/[b]/c", 1)]
)
def test_the_fixed_part_ends_before_the_last_name(pattern, count):
    """The names before the first that is an expression stand for themselves."""
    assert count == fixed_parts(pattern)
