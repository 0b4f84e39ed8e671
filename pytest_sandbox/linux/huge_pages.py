"""Pages of memory: having few large ones makes a fork cheap, whose time goes into the table of them
(Documentation/admin-guide/mm/transhuge.rst).
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.linux import syscall as sc

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["gather"]

_SETTINGS = "/sys/kernel/mm/transparent_hugepage"
_MADV_COLLAPSE = 25  # Linux 6.1
#: How much of a stretch has to be in memory, that it may be in large pages, which have no holes.
_FILLED = 0.95
#: Where a large page is larger than this (512 MiB on some arm64), it is not for a heap.
_LARGEST = 4 << 20


def gather() -> None:
    """Have the process's own memory lie in huge pages, where this kernel has them and its settings
    allow it.

    That takes about half as long as filling the memory did, and nothing of what is in it changes. A
    fork copies one entry instead of 512 then, until one of the two writes to such a page: its
    entries are separate again afterwards, so it pays to gather from time to time.
    """
    size = _size()
    for begin, end in _stretches() if size else ():
        first, last = -(-begin // size) * size, end // size * size
        if first < last:
            with suppress(
                OSError
            ):  # an older kernel, or too little free memory in one piece: then it stays as it is
                sc.madvise(first, last - first, _MADV_COLLAPSE)


def _size() -> int:
    """Return the size of a huge page; 0 where there is none that may be used."""
    try:
        with (
            open(f"{_SETTINGS}/enabled", encoding="ascii") as enabled,
            open(f"{_SETTINGS}/hpage_pmd_size", encoding="ascii") as size,
        ):
            return (
                0
                if "[never]" in enabled.read() or (found := int(size.read())) > _LARGEST
                else found
            )
    except FileNotFoundError:
        return 0


def _stretches() -> Iterator[tuple[int, int]]:
    """Yield where the memory of this process lies that is nobody else's and no file's, and that is
    in use nearly everywhere (proc_pid_smaps(5)).
    """
    begin = end = 0
    is_own = False
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as file:
        for line in file:
            words = line.split()
            if not words[0].endswith(":"):
                begin, end = (int(word, 16) for word in words[0].split("-"))
                is_own = words[1] == "rw-p" and words[4] == "0" and words[5:] != ["[stack]"]
            elif is_own and words[0] == "Rss:" and int(words[1]) * 1024 >= _FILLED * (end - begin):
                yield begin, end
