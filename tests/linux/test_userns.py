"""Maps of user namespaces: who is who in there."""

from __future__ import annotations

import os

import pytest

from pytest_sandbox.linux import userns

pytestmark = pytest.mark.vm


@pytest.mark.parametrize(
    ("own", "ranges", "expected"),
    [
        (1000, [(100000, 65536)], [(0, 100000, 1000), (1000, 1000, 1), (1001, 101000, 64535)]),
        (
            1000,
            [(100000, 500), (300000, 10000)],
            [(0, 100000, 500), (500, 300000, 500), (1000, 1000, 1), (1001, 300500, 9500)],
        ),
        (1000, [], [(1000, 1000, 1)]),
        (0, [(100000, 65536)], [(0, 0, 1), (1, 100000, 65535)]),
        (70000, [(100000, 70000)], [(0, 100000, 65536), (70000, 70000, 1)]),
    ],
)
def test_the_user_keeps_its_number(own, ranges, expected):
    """Subordinate ids take the places around it from 0 on, and no place twice."""
    assert expected == userns.builder_map(own, ranges)


def test_the_user_is_root_in_an_image():
    """In the namespace below, the user is 0, and what stood before it is one further; no number is
    lost.
    """
    outer = [(0, 100000, 1000), (1000, 1000, 1), (1001, 101000, 64535)]
    assert [(0, 1000, 1), (1, 0, 1000), (1001, 1001, 64535)] == userns.root_map(outer, 1000)
    assert [(0, 1000, 1)] == userns.root_map([(1000, 1000, 1)], 1000)


def test_ranges_are_read_by_name_and_number():
    """Lines of others, and lines that are none, are passed over."""
    uid = os.getuid()
    text = f"somebody-else:1:2\n{uid}:100000:65536\nnonsense\n{uid}:x:y\n{uid}:300000:10\n"
    assert [(100000, 65536), (300000, 10)] == userns.subordinate_ranges("/etc/subuid", text, uid)


def test_a_file_that_is_not_there_has_no_ranges(tmp_path):
    """Without /etc/subuid a user is alone in its namespace."""
    assert [] == userns.subordinate_ranges(str(tmp_path / "subuid"))
