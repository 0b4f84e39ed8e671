"""Parsing of the host's mounts, and mount options and layers of overlays."""

from __future__ import annotations

import os

import pytest

from pytest_sandbox.linux import mounts, overlay
from pytest_sandbox.linux import syscall as sc

LINE = "36 35 98:0 /mnt1 {point} {flags} master:1 - {kind} /dev/root rw,errors=continue"


@pytest.mark.parametrize(
    ("written", "point"),
    [
        ("/a", "/a"),
        (r"/a\040b", "/a b"),
        (r"/a\011b", "/a\tb"),
        (r"/a\012b", "/a\nb"),
        (r"/a\134b", "/a\\b"),
        (r"/a\134040b", r"/a\040b"),
        ("/a\u2028b", "/a\u2028b"),
        ("/a\x0cb", "/a\x0cb"),
        ("/\udcff", "/\udcff"),
        ("/a#b,c:d", "/a#b,c:d"),
    ],
)
def test_list_mounts(written, point):
    """Paths are unescaped, and only a newline ends a line."""
    text = (
        LINE.format(point=written, flags="rw,nosuid,noexec", kind="ext4")
        + "\n"
        + LINE.format(point="/z", flags="ro", kind="tmpfs")
        + "\n"
    )
    first, second = mounts.list_mounts(os.fsencode(text))
    assert (point, "ext4", sc.MS_NOSUID | sc.MS_NOEXEC) == (first.point, first.fstype, first.flags)
    assert ("/z", "tmpfs", sc.MS_RDONLY) == (second.point, second.fstype, second.flags)


def test_real_mounts(tmp_path):
    """The root, kernel file systems, and mounts below /proc, /sys and /dev are left out."""
    (tmp_path / "file").touch()

    def mount(point, fstype="ext4", flags=0):
        return mounts.HostMount(str(point), fstype, flags)

    entries = [
        mount("/"),
        mount(tmp_path),
        mount(tmp_path, "xfs", sc.MS_RDONLY),
        mount(tmp_path / "file"),
        mount("/proc", "proc"),
        mount("/dev/shm", "tmpfs"),
        mount("/sys/fs/cgroup", "tmpfs"),
        mount("/no/such/place"),
        mount("/usr", "fuse.something"),
        mount("/etc", "cgroup2"),
    ]
    found = mounts.real_mounts(entries)
    assert [
        (str(tmp_path), "xfs", True),
        (str(tmp_path / "file"), "ext4", False),
        ("/usr", "fuse.something", True),
    ] == [(one.point, one.fstype, one.is_directory) for one in found]


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("/a", "/a"),
        ("/a:b", "/a\\:b"),
        ("/a,b", "/a\\,b"),
        ("/a\\b", "/a\\\\b"),
        ("/a\\:b", "/a\\\\\\:b"),
    ],
)
def test_paths_in_overlay_options_are_escaped(path, written):
    """Separators of directories and options, and the escape character, are escaped."""
    assert f"lowerdir={written}:/z,upperdir=/l/upper,workdir=/l/work,o" == overlay._data(
        [path, "/z"], "/l", ["o"]
    )


def test_make_layer_copies_mode_and_owner(tmp_path):
    """The root of a layer has the mode, with set-group-ID and sticky bits, and the owner."""
    like = tmp_path / "like"
    like.mkdir()
    like.chmod(0o3751)
    overlay.make_layer(str(tmp_path / "layer"), str(like))
    upper = (tmp_path / "layer/upper").stat()
    assert (like.stat().st_mode, like.stat().st_uid, ["upper", "work"]) == (
        upper.st_mode,
        upper.st_uid,
        sorted(os.listdir(tmp_path / "layer")),
    )
