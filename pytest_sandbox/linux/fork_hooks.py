"""System calls at the moment of a fork: directly before it, and first of all after it.

A library may start threads right after a fork, in its own fork handlers (pthread_atfork(3),
:func:`os.register_at_fork`): gRPC and ddtrace do. In the parent that fails while the thread's next
children are assigned to another PID namespace (clone(2), EINVAL), and a child with two threads can
neither enter a mount namespace nor a user namespace (setns(2)). So the PID namespace is set by the
last handler before the fork and set back by the first one after it, and the child is inside the
container before any other handler runs.

The handlers are machine code, since Python's own are called after those of libraries. They are
first and last if they are registered before a library is loaded that has others:
:func:`install` is called before pytest loads conftest files.
"""

from __future__ import annotations

import os
import struct
import threading
from functools import cache
from typing import TYPE_CHECKING

from pytest_sandbox.linux import machine_code, native_code

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Sequence

    from pytest_sandbox.linux.syscall_batch import SyscallBatch

__all__ = ["fork_with", "install"]

#: The offset of a hook's data (``DATA`` in tools/machine_code): the largest page size of Linux.
_DATA = 0x10000
_NO_THREAD = 0


def install() -> None:
    """Register the handlers, once for this process and its forks."""
    _hooks()


@cache
def _hooks() -> tuple[mmap.mmap, ...]:
    """Register three hooks; return the memory of each."""
    machine = os.uname().machine
    code = machine_code.RUN[machine] + machine_code.HELPER[machine]
    entry = len(code) + -len(code) % 16  # the hook starts with the bytes that align it
    code += machine_code.HOOK[machine]
    mapped = [native_code.map_with_data(code, _DATA) for _ in range(3)]
    for _address, memory in mapped:  # another thread may fork before the first call of fork_with()
        _arm(memory, _NO_THREAD, ())
    native_code.register_fork_handlers(*(address + entry for address, _memory in mapped))
    return tuple(memory for _address, memory in mapped)


def fork_with(
    fork: Callable[[], int],
    before: SyscallBatch,
    in_parent: SyscallBatch,
    in_child: Sequence[SyscallBatch],
) -> int:
    """Call ``fork``, which forks this process; return its result.

    The calls of ``before`` are made directly before the fork, those of ``in_parent`` and
    ``in_child`` first of all after it. The caller looks for errors in the batches, and holds a lock
    so that no other thread calls this meanwhile.
    """
    hooks = _hooks()
    for memory, batches in zip(hooks, ([before], [in_parent], in_child), strict=True):
        _arm(memory, threading.get_ident(), batches)
    try:
        return fork()
    finally:
        for memory in hooks:  # the child's hook in the parent, the parent's in the child
            _arm(memory, _NO_THREAD, ())


def _arm(memory: mmap.mmap, thread: int, batches: Sequence[SyscallBatch]) -> None:
    lists = [batch.prepared for batch in batches]
    words = (thread, native_code.address_of_pthread_self(), *lists, 0)
    struct.pack_into(f"={len(words)}Q", memory, _DATA, *words)
