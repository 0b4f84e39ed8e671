"""Collapsing memory into huge pages (MADV_COLLAPSE)."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from pytest_sandbox.container.fork import Forks
from pytest_sandbox.linux import huge_pages

SIZE = 16 << 20


def figure(name: str) -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


@pytest.fixture
def memory():
    with mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        yield memory


@pytest.mark.needs("huge_pages")
def test_resident_memory_is_collapsed(memory):
    """Memory in use is in huge pages afterwards, with the same content."""
    memory[:] = content = os.urandom(1 << 20) * (SIZE >> 20)
    memory.madvise(mmap.MADV_HUGEPAGE)
    before = figure("AnonHugePages:")
    huge_pages.collapse()
    assert figure("AnonHugePages:") - before >= SIZE - (4 << 20)
    assert content == memory[:]


@pytest.mark.needs("huge_pages")
def test_sparse_memory_is_not_collapsed(memory):
    """A mapping that is mostly not resident does not grow."""
    huge_pages.collapse()
    for at in range(0, SIZE, 1 << 20):
        memory[at] = 1
    memory.madvise(mmap.MADV_HUGEPAGE)
    before = figure("Rss:")
    huge_pages.collapse()
    assert figure("Rss:") - before < SIZE // 2


def test_the_interval_doubles(monkeypatch):
    """Memory is collapsed after 16 forks, and again each time their number has doubled."""
    forks, made, done = Forks(), [], []
    monkeypatch.setattr(huge_pages, "collapse", lambda: done.append(len(made)))
    for number in range(100):
        forks.gather()
        forks.count()
        made.append(number)
    assert [16, 32, 64] == done
