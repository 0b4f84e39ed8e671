"""The skeleton of the host's root for unprivileged users: split directories, and overlays."""

from __future__ import annotations

import os
import socket
import stat

import pytest

from pytest_sandbox.linux.host_root import _Splitter
from pytest_sandbox.linux.mounts import HostMount

pytestmark = pytest.mark.vm


@pytest.fixture
def tree(tmp_path):
    """A root with a mount on ``var/lib/data``, a file that is a mount point, and other files."""
    root = tmp_path / "root"
    for directory in ("usr/bin", "var/lib/data", "var/lib/other", "var/cache", "etc"):
        (root / directory).mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    (root / "var/small").write_text("small")
    (root / "var/large").write_bytes(b"x" * ((1 << 20) + 1))
    (root / "etc/hosts").write_text("mounted")
    (root / "etc/passwd").write_text("plain")
    return root


@pytest.fixture
def splitter(tree, tmp_path):
    (tmp_path / "skeleton").mkdir()
    entries = [
        HostMount("/", "ext4", 0),
        HostMount(f"{tree}/var/lib/data", "xfs", 2),
        HostMount(f"{tree}/etc/hosts", "ext4", 0),
    ]
    return _Splitter(entries, str(tmp_path / "skeleton"))


def test_a_directory_without_mounts_has_one_overlay(splitter, tree):
    """It is not listed, whatever its size."""
    splitter.split(str(tree))
    assert "" == splitter.below[f"{tree}/usr"].source
    assert not any(point.startswith(f"{tree}/usr/") for point in splitter.below)


def test_a_directory_with_a_mount_below_is_split(splitter, tree):
    """Each directory in it has an overlay, including the mount."""
    splitter.split(str(tree))
    var, lib = splitter.below[f"{tree}/var"], splitter.below[f"{tree}/var/lib"]
    assert (True, True) == (bool(var.source), bool(lib.source))
    assert ["cache", "large", "lib", "small"] == sorted(os.listdir(var.source))
    assert ["data", "other"] == sorted(os.listdir(lib.source))
    assert ("xfs", 2, "") == (
        splitter.below[f"{tree}/var/lib/data"].fstype,
        splitter.below[f"{tree}/var/lib/data"].flags,
        lib.source and "",
    )
    assert "" == splitter.below[f"{tree}/var/lib/other"].source


def test_files_next_to_a_mount_are_copied(splitter, tree):
    """Small files are copied, including mount points; large files are bind mounts."""
    splitter.split(str(tree))
    with open(f"{splitter.below[f'{tree}/var'].source}/small") as file:
        assert "small" == file.read()
    with open(f"{splitter.below[f'{tree}/etc'].source}/passwd") as file:
        assert "plain" == file.read()
    with open(f"{splitter.below[f'{tree}/etc'].source}/hosts") as file:
        assert "mounted" == file.read()
    assert {f"{tree}/var/large"} == {point for point in splitter.below if os.path.isfile(point)}


def test_symbolic_links_are_copied(splitter, tree):
    """A symbolic link in the root has the same target."""
    assert "usr/bin" == os.readlink(f"{splitter.split(str(tree))}/bin")


def test_open_mounts_the_first_writable_directory(splitter, tree):
    """The first writable directory of the path has an overlay; those of the kernel have none."""
    (tree / "usr/share/work").mkdir(parents=True)
    first = next(
        str(directory)
        for directory in [*reversed(tree.parents), tree]
        if str(directory) != "/" and os.access(directory, os.W_OK)
    )
    splitter.open(str(tree / "usr/share/work"))
    assert first in splitter.below
    splitter.open("/")
    splitter.open("/proc/self")
    assert not {"/", "/proc", "/proc/self"} & set(splitter.below)


def test_sockets_and_fifos_are_replaced(splitter, tree, monkeypatch):
    """New nodes replace sockets and FIFOs; those that are mount points are recorded."""
    os.mkfifo(tree / "etc/fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as one:
        monkeypatch.chdir(tree)
        one.bind("etc/socket")
    splitter.mounts[f"{tree}/etc/socket"] = HostMount(f"{tree}/etc/socket", "ext4", 0)
    splitter.split(str(tree))
    for name, is_kind in {"fifo": stat.S_ISFIFO, "socket": stat.S_ISSOCK}.items():
        copy, original = (
            os.stat(f"{directory}/{name}")
            for directory in (splitter.below[f"{tree}/etc"].source, tree / "etc")
        )
        assert (True, True) == (is_kind(copy.st_mode), copy.st_ino != original.st_ino)
    assert [f"{tree}/etc/socket"] == splitter.refused
