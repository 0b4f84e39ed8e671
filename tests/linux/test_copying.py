"""Copies of overlay layers: complete, as sparse as the source, and safe if the source changes."""

from __future__ import annotations

import os
import socket
import stat

import pytest
from trees import deep_path, dig, few_descriptors, levels

from pytest_sandbox.linux import copying

__all__ = ["deep_path"]

_GIB = 1 << 30


@pytest.fixture
def source(deep_path):
    """An empty directory to copy."""
    (deep_path / "source").mkdir()
    return deep_path / "source"


@pytest.fixture
def copy(deep_path, source):
    """Return a function that copies the tree and returns the path of the copy."""

    def copy():
        fd = os.open(source, os.O_RDONLY)
        try:
            copying.copy_tree(fd, str(deep_path / "target"))
        finally:
            os.close(fd)
        return deep_path / "target"

    return copy


def test_sparse_files_stay_sparse(source, copy):
    """A sparse file has its holes and its data at the same offsets in the copy."""
    with open(source / "sparse", "wb") as file:
        file.truncate(2 * _GIB)
        os.pwrite(file.fileno(), b"middle", _GIB)
    made = copy() / "sparse"
    with open(made, "rb") as file:
        assert (b"middle", 2 * _GIB) == (
            os.pread(file.fileno(), 6, _GIB),
            os.fstat(file.fileno()).st_size,
        )
    assert made.stat().st_blocks * 512 < 1 << 20


def test_a_file_without_data(source, copy):
    """A file that is one hole keeps its size."""
    with open(source / "hole", "wb") as file:
        file.truncate(1 << 20)
    assert bytes(1 << 20) == (copy() / "hole").read_bytes()


@pytest.mark.parametrize("size", [0, 1, 1 << 16, (1 << 16) + 1, (9 << 20) + 5])
def test_content_is_copied(source, copy, size):
    """Small and large files are copied completely."""
    data = os.urandom(size)
    (source / "file").write_bytes(data)
    assert data == (copy() / "file").read_bytes()


def test_a_file_that_grows(tmp_path, source):
    """Data that is written after fstat(2) is not copied."""
    (source / "file").write_bytes(b"x" * 10)
    status = os.stat(source / "file")
    (source / "file").write_bytes(b"x" * 100)
    with open(source / "file", "rb") as read, open(tmp_path / "copy", "wb") as write:
        assert 10 == copying.copy_content(read.fileno(), write.fileno(), status)
    assert b"x" * 10 == (tmp_path / "copy").read_bytes()


def test_a_procfs_file(tmp_path):
    """A file of procfs, whose size is 0, is copied."""
    with open("/proc/version", "rb") as read, open(tmp_path / "copy", "wb") as write:
        copying.copy_content(read.fileno(), write.fileno(), os.fstat(read.fileno()))
    with open("/proc/version", "rb") as file:
        assert file.read() == (tmp_path / "copy").read_bytes()


def test_a_deep_tree(source, copy):
    """Depth and path length have no limit, and few descriptors are used."""
    dig(source, 1500, "d" * 200)
    with few_descriptors():
        made = copy()
    assert (1500, "the end") == levels(made, "d" * 200)


def test_hard_links(source, copy):
    """Hard links to files, symbolic links and FIFOs are preserved; sockets are skipped."""
    (source / "a").write_text("shared")
    os.mkfifo(source / "fifo")
    (source / "link").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(source / "socket"))
    (source / "sub/deep").mkdir(parents=True)
    for place in ("sub", "sub/deep"):
        for name in ("a", "fifo", "link", "socket"):
            os.link(source / name, source / place / name, follow_symlinks=False)
    made = copy()
    names = ["a", "fifo", "link"]
    assert names == [one for one in sorted(os.listdir(made)) if one != "sub"]
    for name in names:
        assert 1 == len(
            {os.lstat(made / place / name).st_ino for place in (".", "sub", "sub/deep")}
        )
    assert "shared" == (made / "sub/deep/a").read_text()


def test_hard_links_with_a_long_path_are_rejected(source, copy):
    """A path that is too long cannot be linked to, and the content is not copied twice."""
    dig(source, 50, "d" * 200)
    fd = os.open(source, os.O_RDONLY)
    for _ in range(50):
        deeper = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.link("end", "again", src_dir_fd=fd, dst_dir_fd=fd)
    os.close(fd)
    with pytest.raises(OSError, match="several hard links"):
        copy()


@pytest.mark.needs("root")
def test_whiteouts_share_an_inode(source, copy):
    """The whiteouts of a layer are hard links to one inode."""
    for number in range(5):
        os.mknod(source / str(number), stat.S_IFCHR, 0)
    made = copy()
    found = [os.lstat(made / str(number)) for number in range(5)]
    assert ({True}, 1) == (
        {stat.S_ISCHR(one.st_mode) and one.st_rdev == 0 for one in found},
        len({one.st_ino for one in found}),
    )


def test_a_file_replaced_by_a_fifo(source, copy, monkeypatch):
    """The copy does not block if a process replaces a file by a FIFO."""
    (source / "before").write_text("x")
    (source / "after").write_text("content")
    real = copying.open_entry

    def replace_by_fifo(name, directory):
        if name == "before":
            os.unlink(name, dir_fd=directory)
            os.mkfifo(name, dir_fd=directory)
        entry = real(name, directory)
        if name == "after":
            os.unlink(name, dir_fd=directory)
            os.mkfifo(name, dir_fd=directory)
        return entry

    monkeypatch.setattr(copying, "open_entry", replace_by_fifo)
    made = copy()
    assert (True, "content") == (
        stat.S_ISFIFO(os.lstat(made / "before").st_mode),
        (made / "after").read_text(),
    )


def test_a_file_that_disappears(source, copy, monkeypatch):
    """A file that is removed meanwhile is skipped."""
    (source / "gone").touch()
    (source / "here").touch()
    real = copying.open_entry

    def remove_first(name, directory):
        if name == "gone":
            os.unlink(name, dir_fd=directory)
        return real(name, directory)

    monkeypatch.setattr(copying, "open_entry", remove_first)
    assert ["here"] == os.listdir(copy())
