"""Directory trees that are hard to handle, for the tests of several packages."""

from __future__ import annotations

import os
import resource
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.linux.removal import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["deep_path", "dig", "few_descriptors", "levels"]


@pytest.fixture
def deep_path() -> Iterator[Path]:
    """Yield a directory on a tmpfs for deep trees, which pytest could not remove from tmp_path."""
    path = tempfile.mkdtemp(dir="/dev/shm")
    yield Path(path)
    remove_tree(path)


def dig(root: str | os.PathLike[str], depth: int, name: str = "d") -> None:
    """Create nested directories below ``root``, with a file in each."""
    fd = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
        os.mkdir(name, dir_fd=fd)
        deeper = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    with open(os.open("end", os.O_WRONLY | os.O_CREAT, dir_fd=fd), "w") as file:
        file.write("the end")
    os.close(fd)


def levels(root: str | os.PathLike[str], name: str = "d") -> tuple[int, str]:
    """Return the depth of nested directories, and the text of the file in the last one."""
    fd = os.open(root, os.O_RDONLY)
    depth = 0
    while name in os.listdir(fd):
        deeper = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd, depth = deeper, depth + 1
    with open(os.open("end", os.O_RDONLY, dir_fd=fd)) as file:
        text = file.read()
    os.close(fd)
    return depth, text


@contextmanager
def few_descriptors(more: int = 150) -> Iterator[None]:
    """Limit this process to ``more`` further open descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
