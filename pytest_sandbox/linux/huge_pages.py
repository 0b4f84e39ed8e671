"""Collapse this process's memory into huge pages, which makes fork(2) faster.

A fork spends most of its time on copying page tables. See madvise(2), MADV_COLLAPSE, and
Documentation/admin-guide/mm/transhuge.rst.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.linux import syscall as sc

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["collapse"]

_SETTINGS = "/sys/kernel/mm/transparent_hugepage"
_MADV_COLLAPSE = 25  # Linux 6.1
#: The part of a mapping that must be in memory: collapsing allocates the rest of it.
_RESIDENT = 0.95
#: Larger huge pages (512 MiB on some arm64 kernels) would waste memory in a heap.
_MAX_SIZE = 4 << 20


def collapse() -> None:
    """Collapse the private memory of this process into huge pages, if the kernel supports it.

    It takes about half as long as filling the memory did. A fork then copies 1 page table entry
    instead of 512, until one of the processes writes to the page and splits it again; so this is
    worth repeating after a number of forks.
    """
    size = _huge_page_size()
    for begin, end in _private_mappings() if size else ():
        first, last = -(-begin // size) * size, end // size * size
        if first < last:
            with suppress(OSError):  # EINVAL before Linux 6.1; ENOMEM without a free huge page
                sc.madvise(first, last - first, _MADV_COLLAPSE)


def _huge_page_size() -> int:
    """Return the size of a huge page in bytes; 0 if none may be used."""
    try:
        with (
            open(f"{_SETTINGS}/enabled", encoding="ascii") as enabled,
            open(f"{_SETTINGS}/hpage_pmd_size", encoding="ascii") as size,
        ):
            return (
                0
                if "[never]" in enabled.read() or (found := int(size.read())) > _MAX_SIZE
                else found
            )
    except FileNotFoundError:
        return 0


def _private_mappings() -> Iterator[tuple[int, int]]:
    """Yield start and end of anonymous, mostly resident mappings (proc_pid_smaps(5))."""
    begin = end = 0
    is_private = False
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as file:
        for line in file:
            words = line.split()
            if not words[0].endswith(":"):
                begin, end = (int(word, 16) for word in words[0].split("-"))
                is_private = words[1] == "rw-p" and words[4] == "0" and words[5:] != ["[stack]"]
            elif (
                is_private
                and words[0] == "Rss:"
                and int(words[1]) * 1024 >= _RESIDENT * (end - begin)
            ):
                yield begin, end
