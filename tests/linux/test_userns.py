"""ID maps of user namespaces, and subordinate ranges."""

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
def test_builder_map(own, ranges, expected):
    """The user keeps its ID, and subordinate IDs are mapped to the others from 0 on."""
    assert expected == userns.builder_map(own, ranges)


def test_root_map():
    """The user becomes 0, the IDs below it move up by one, and no ID is lost."""
    outer = [(0, 100000, 1000), (1000, 1000, 1), (1001, 101000, 64535)]
    assert [(0, 1000, 1), (1, 0, 1000), (1001, 1001, 64535)] == userns.root_map(outer, 1000)
    assert [(0, 1000, 1)] == userns.root_map([(1000, 1000, 1)], 1000)


def test_subordinate_ranges():
    """Lines of other users and malformed lines are ignored."""
    uid = os.getuid()
    text = f"somebody-else:1:2\n{uid}:100000:65536\nnonsense\n{uid}:x:y\n{uid}:300000:10\n"
    assert [(100000, 65536), (300000, 10)] == userns.subordinate_ranges("/etc/subuid", text, uid)


def test_without_a_subuid_file(tmp_path):
    """There are no subordinate ranges."""
    assert [] == userns.subordinate_ranges(str(tmp_path / "subuid"))
