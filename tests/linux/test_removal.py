"""Removal of directory trees that a container has written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
from trees import deep_path, dig, few_descriptors

from pytest_sandbox.linux.removal import remove_tree

__all__ = ["deep_path"]


@pytest.mark.parametrize(
    ("depth", "name"), [(3000, "d"), (1500, "d" * 200)], ids=["levels", "long names"]
)
def test_a_deep_tree(deep_path, depth, name):
    """Depth and path length have no limit, and few descriptors are used."""
    root = deep_path / "root"
    root.mkdir()
    dig(root, depth, name)
    with few_descriptors():
        remove_tree(str(root))
    assert not root.exists()


def test_directories_without_permissions(tmp_path):
    """Directories with mode 0 are removed."""
    (tmp_path / "root/closed/deep").mkdir(parents=True)
    (tmp_path / "root/closed/deep/file").touch()
    for path in ("root/closed/deep", "root/closed", "root"):
        (tmp_path / path).chmod(0)
    remove_tree(str(tmp_path / "root"))
    assert [] == os.listdir(tmp_path)


def test_many_subdirectories(tmp_path, monkeypatch):
    """More subdirectories than are held in memory are all removed."""
    monkeypatch.setattr("pytest_sandbox.linux.removal._MAX_NAMES", 3)
    for number in range(10):
        (tmp_path / f"root/{number}/deep").mkdir(parents=True)
    remove_tree(str(tmp_path / "root"))
    assert [] == os.listdir(tmp_path)


def test_symbolic_links_are_not_followed(tmp_path):
    """A link is removed, its target is not; a link as the root is an error."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path / "precious")
    remove_tree(str(tmp_path / "root"))
    (tmp_path / "root").symlink_to(tmp_path / "precious")
    with pytest.raises(NotADirectoryError):
        remove_tree(str(tmp_path / "root"))
    assert ["file"] == os.listdir(tmp_path / "precious")


def test_a_missing_directory(tmp_path):
    """Removing a directory that does not exist is not an error."""
    remove_tree(str(tmp_path / "none"))


@pytest.mark.needs("root")
def test_a_mount_point_is_not_emptied(tmp_path):
    """The rest is removed, and the error has the path of the mount point."""
    code = f"""
import os
from pytest_sandbox.linux import mounts, syscall as sc
from pytest_sandbox.linux.removal import remove_tree
sc.unshare(sc.CLONE_NEWNS)
mounts.make_private()
os.makedirs("{tmp_path}/root/a/mounted")
os.makedirs("{tmp_path}/root/b/other")
sc.mount("tmpfs", "{tmp_path}/root/a/mounted", "tmpfs")
open("{tmp_path}/root/a/mounted/file", "w").close()
try:
    remove_tree("{tmp_path}/root")
except OSError as error:
    print(error.errno, error.filename)
print(os.listdir("{tmp_path}/root"), os.listdir("{tmp_path}/root/a/mounted"))
"""
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert f"{errno.EBUSY} {tmp_path}/root/a/mounted\n['a'] ['file']\n" == output


@pytest.mark.parametrize("function", ["rmdir", "unlink"])
def test_a_name_that_is_listed_and_does_not_exist(tmp_path, monkeypatch, function):
    """A directory that lists a name which cannot be found, as a stale overlay does, is an error,
    not an endless loop.
    """
    (tmp_path / "tree/directory").mkdir(parents=True)
    (tmp_path / "tree/file").touch()

    def fail(name, **_keywords):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(FileNotFoundError, match=r"tree/(directory|file)"):
            remove_tree(str(tmp_path / "tree"))
