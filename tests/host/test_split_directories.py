"""A directory that has mounts below it, as an unprivileged user's containers show it."""

from __future__ import annotations

import pytest

from pytest_sandbox.linux import mounts
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.host_root import HostRoot
from pytest_sandbox.runtime import host_mounts

pytestmark = pytest.mark.needs("root")


@pytest.fixture
def split(tmp_path):
    """A split directory on a file system over which no overlay is laid."""
    for name in ("skeleton", "point"):
        (tmp_path / name).mkdir()
    (tmp_path / "point/file").write_text("below")
    return mounts.HostMount(
        str(tmp_path / "point"),
        "squashfs",
        sc.MS_RDONLY,
        source=str(tmp_path / "skeleton"),
        is_mount=False,
    )


def test_a_split_directory_is_an_overlay_of_its_skeleton(split):
    """It is not bound: mount(2) answers EINVAL to a bind mount without the locked mounts below it
    (mount_namespaces(7)).
    """
    (shown,) = host_mounts.shown(HostRoot("/", (split,))).below
    assert (mounts.READ_ONLY, split.source) == (shown.shown, shown.lower)


def test_what_is_mounted_below_a_bound_skeleton_is_shown(split, monkeypatch):
    """Where no overlay works either, the skeleton is bound, and has a place for each mount."""
    monkeypatch.setattr(host_mounts, "_works", lambda *_arguments: False)
    below = mounts.HostMount(f"{split.point}/file", "tmpfs", 0, is_directory=False)
    root = host_mounts.shown(HostRoot("/", (split, below)))
    assert [mounts.BOUND] == [entry.shown for entry in root.below]
    assert {split.point: (below.point,)} == root.copied
