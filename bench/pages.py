"""The row about the machine: what a page of memory costs after a fork. Most of the time of a test
inside consists of this, so milliseconds depend on it.
"""

from __future__ import annotations

import mmap
import os
import signal
import statistics
import time
from typing import TYPE_CHECKING

from bench.table_row import Figure, Row

if TYPE_CHECKING:
    from bench.rows import Bench

_PAGES = 2048
_MADV_NOHUGEPAGE = 15  # <sys/mman.h>


def _write(memory: mmap.mmap) -> float:
    """Write to each page; return the microseconds for one."""
    start = time.perf_counter()
    for place in range(0, _PAGES * mmap.PAGESIZE, mmap.PAGESIZE):
        memory[place] = 1
    return (time.perf_counter() - start) * 1e6 / _PAGES


def _write_beside_fork(memory: mmap.mmap) -> float:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    try:
        return _write(memory)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _write_after_fork(memory: mmap.mmap) -> float:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return _write(memory)


def pages(bench: Bench) -> Row:
    """Measure in turns, in this process."""
    works = {
        "write to a page": _write,
        "the same beside a fork, which copies it": _write_beside_fork,
        "the same after the fork has ended, which reclaims it": _write_after_fork,
    }
    found: dict[str, list[float]] = {label: [] for label in works}
    size = _PAGES * mmap.PAGESIZE
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(_MADV_NOHUGEPAGE)
        _write(memory)
        for _ in range(bench.scale.blocks * bench.scale.size):
            for label, work in works.items():
                found[label].append(work(memory))
    figures = [Figure(label, statistics.median(times), "us") for label, times in found.items()]
    return Row("pages", "A page of memory after a fork, on this machine", figures)
