"""Machine code, memory, libraries and CPython's fork hooks: what ctypes provides besides system
calls.

See mmap(2), mprotect(2), dlopen(3) and dl_iterate_phdr(3). The code itself is in
:mod:`pytest_sandbox.linux.machine_code`.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, cast

from pytest_sandbox.linux import syscall as sc

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "VersionTag",
    "address_of",
    "address_of_pthread_self",
    "clear_memory",
    "count_of_loads",
    "find_library",
    "fork_handlers",
    "map_code",
    "map_with_data",
    "names_of_libraries",
    "register_fork_handlers",
    "spawn",
    "version_tag",
]

#: Has the attribute ``value``.
VersionTag = ctypes.c_uint64
#: In a dict, after the reference count, the type and the number of items (CPython's
#: Include/cpython/dictobject.h).
_VERSION_TAG_AT = 24

_CLONE_FLAGS = sc.CLONE_VM | sc.CLONE_VFORK | sc.CLONE_PIDFD | sc.CLONE_CLEAR_SIGHAND
_PROT_READ_EXEC = mmap.PROT_READ | mmap.PROT_EXEC
_mapped: list[mmap.mmap] = []
# PYFUNCTYPE holds the GIL during the call: while a child shares this memory, no other thread may
# fork or change what the code reads.
_CODE = ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


class _LoadedObject(ctypes.Structure):
    """The start of struct dl_phdr_info."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("headers", ctypes.c_void_p),
        ("header_count", ctypes.c_uint16),
        ("loads", ctypes.c_ulonglong),
    )


# PYFUNCTYPE: the C library holds a lock while it calls the function, so this thread must not wait
# for the GIL then: another one may hold it and load a library.
_VISITOR = ctypes.PYFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(_LoadedObject), ctypes.c_size_t, ctypes.c_void_p
)
_ITERATE = ctypes.PYFUNCTYPE(ctypes.c_int, _VISITOR, ctypes.c_void_p)
_DLOPEN = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int)
_DLCLOSE = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)


def address_of(buffer: bytearray | mmap.mmap) -> int:
    """Return the address of a buffer, which must not be resized or freed while it is used."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def version_tag(dictionary: dict[str, Any]) -> VersionTag | None:
    """Return the version of a dictionary, another number after each change of it (PEP 509); None if
    this interpreter has none. It must not be read once the dictionary is gone.
    """
    return VersionTag.from_address(id(dictionary) + _VERSION_TAG_AT) if _has_versions() else None


@functools.cache
def _has_versions() -> bool:
    """Tell whether dictionaries have versions: CPython up to 3.13 has some."""
    if sys.implementation.name != "cpython" or dict.__basicsize__ < _VERSION_TAG_AT + 8:
        return False
    sample: dict[str, Any] = {"a": None}
    tag = VersionTag.from_address(id(sample) + _VERSION_TAG_AT)
    versions = [tag.value]
    for value in (None, 1, None, 2):
        sample["a"] = value
        versions.append(tag.value)
    sample["b"] = None
    versions.append(tag.value)
    del sample["b"]
    versions.append(tag.value)
    _ = sample.copy(), sample.get("a"), len(sample)
    # Setting the same value again is no change.
    return len(set(versions[1:])) == len(versions) - 1 and tag.value == versions[-1]


def map_code(code: bytes) -> Callable[[int, int], int]:
    """Map machine code, executable and not writable; return it as a function of two addresses.

    It stays mapped until the process ends.
    """
    page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page.write(code)
    _mapped.append(page)
    address = address_of(page)
    sc.checked(
        sc.libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), _PROT_READ_EXEC),
        "mprotect",
        "PROT_EXEC",
    )
    return cast("Callable[[int, int], int]", _CODE(address))


def map_with_data(code: bytes, data_at: int) -> tuple[int, mmap.mmap]:
    """Map machine code, executable and not writable, with a page of data ``data_at`` bytes after
    its start; return the address and the mapping. It stays mapped until the process ends.
    """
    memory = mmap.mmap(-1, data_at + mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(code)
    _mapped.append(memory)
    address = address_of(memory)
    sc.checked(
        sc.libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(data_at), _PROT_READ_EXEC),
        "mprotect",
        "PROT_EXEC",
    )
    return address, memory


def address_of_pthread_self() -> int:
    """Return the address of pthread_self(3), whose result :func:`threading.get_ident` returns."""
    return ctypes.cast(sc.libc.pthread_self, ctypes.c_void_p).value or 0


def register_fork_handlers(before: int, in_parent: int, in_child: int) -> None:
    """Register functions, by their addresses, that fork(3) calls (pthread_atfork(3)).

    Of the handlers of a process, those registered first are called last before a fork and first
    after it. In the GNU C library pthread_atfork is no symbol of the shared library, but the
    function that it calls is: with the handle of the library to which the handlers belong, which
    removes them when it is unloaded.
    """
    handlers = [ctypes.c_void_p(one) for one in (before, in_parent, in_child)]
    glibc = getattr(sc.libc, "__register_atfork", None)
    code = sc.libc.pthread_atfork(*handlers) if glibc is None else glibc(*handlers, None)
    if code:
        raise OSError(code, f"{os.strerror(code)}: pthread_atfork()")


def fork_handlers() -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
    """Return PyOS_BeforeFork, PyOS_AfterFork_Parent and PyOS_AfterFork_Child of CPython.

    They are for a fork that os.fork() does not make. The caller must be single-threaded, because
    the C library's fork handlers do not run.
    """
    before, in_parent, in_child = (
        getattr(ctypes.pythonapi, f"PyOS_{name}")
        for name in ("BeforeFork", "AfterFork_Parent", "AfterFork_Child")
    )
    return before, in_parent, in_child


def count_of_loads() -> int:
    """Return how many objects this process has loaded since its start."""
    found = []

    def visit(entry: Any, _size: int, _data: object) -> int:
        found.append(entry.contents.loads)
        return 1  # the number is the same for all: end here

    _iterate()(_VISITOR(visit), None)
    return found[0] if found else 0


def names_of_libraries() -> list[str]:
    """Return the names by which the libraries of this process were loaded: paths, but for the
    vDSO (vdso(7)).
    """
    found: list[bytes] = []

    def visit(entry: Any, _size: int, _data: object) -> int:
        found.append(entry.contents.name or b"")
        return 0

    _iterate()(_VISITOR(visit), None)
    return [os.fsdecode(name) for name in found if b"/" in name]


@functools.cache
def _iterate() -> Callable[[Any, None], int]:
    return cast("Callable[[Any, None], int]", _ITERATE(("dl_iterate_phdr", sc.libc)))


def find_library(path: str) -> bool:
    """Look for a loaded library by a path of its file, which is one of its names from then on;
    return whether there is one.
    """
    handle = _DLOPEN(("dlopen", sc.libc))(os.fsencode(path), os.RTLD_LAZY | os.RTLD_NOLOAD)
    if handle is None:
        return False
    _DLCLOSE(("dlclose", sc.libc))(handle)
    return True


def clear_memory(address: int, length: int) -> None:
    """Fill ``length`` bytes at ``address`` of this process's memory with zeros."""
    ctypes.memset(address, 0, length)


def spawn(
    code: Callable[[int, int], int], flags: int, cgroup: int, argument: int
) -> tuple[int, int]:
    """Call mapped code in a child that shares this memory; return its PID and a pidfd.

    This process is suspended until the child executes a program or ends (CLONE_VFORK). With
    ``cgroup`` >= 0, a descriptor of a cgroup v2, the child starts in it. Raises OSError if there is
    no child.
    """
    pidfd = ctypes.c_int(-1)
    into = sc.CLONE_INTO_CGROUP if cgroup >= 0 else 0
    how = sc.CloneArgs(
        flags=flags | into | _CLONE_FLAGS,
        pidfd=ctypes.addressof(pidfd),
        exit_signal=signal.SIGCHLD,
        cgroup=max(cgroup, 0),
    )
    pid = code(ctypes.addressof(how), argument)
    if pid < 0:
        raise OSError(-pid, f"{os.strerror(-pid)}: clone3({hex(flags)})")
    return pid, pidfd.value
