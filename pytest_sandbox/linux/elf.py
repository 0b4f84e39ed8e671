"""Build executables of a few instructions in memory: static ELF files in memfds.

See elf(5) and memfd_create(2).
"""

from __future__ import annotations

import fcntl
import os
import struct
from functools import cache

from pytest_sandbox.linux import machine_code

__all__ = ["DATA_ADDRESS", "helper_fd", "init_fd"]

#: Offsets of code and data in the file; tools/machine_code has the same ones. The data starts at a
#: multiple of 64 KiB, the largest page size, so that no page is both writable and executable.
_CODE, _DATA = 0x100, 0x10000
_BASE = 0x400000
#: The address of the spawn helper's data segment.
DATA_ADDRESS = _BASE + _DATA
_MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine
_PT_LOAD, _ET_EXEC = 1, 2
_READ, _WRITE, _EXECUTE = 4, 2, 1  # p_flags
_MFD_EXEC = 0x10
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def init_fd() -> int:
    """Return a descriptor of the program that is PID 1 of every container.

    It is sealed, so that a payload cannot overwrite it through /proc/1/exe (CVE-2019-5736).
    """
    return _executable("pytest-sandbox-init", machine_code.INIT[os.uname().machine], 0, b"")


def helper_fd(data: bytes) -> int:
    """Return a descriptor of the spawn helper with ``data`` in its data segment."""
    code, entry = _helper_code()
    return _executable("pytest-sandbox-spawn", code, entry, data)


@cache
def _helper_code() -> tuple[bytes, int]:
    """Return the code of the spawn helper and the offset of its entry point."""
    machine = os.uname().machine
    run, helper = machine_code.RUN[machine], machine_code.HELPER[machine]
    return run + helper, (len(run) + 15) // 16 * 16


def _executable(name: str, code: bytes, entry: int, data: bytes) -> int:
    """Write a program into a sealed memfd; return a descriptor that execveat(2) accepts."""
    try:
        writable = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | _MFD_EXEC)
    except OSError:  # before Linux 6.3, which added MFD_EXEC, every memfd is executable
        writable = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(writable, _headers(len(code), entry, len(data)) + code)
        if data:
            os.pwrite(writable, data, _DATA)
        fcntl.fcntl(writable, fcntl.F_ADD_SEALS, _SEALS)
        # A file that is open for writing cannot be executed (execve(2), ETXTBSY).
        return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)


def _headers(code: int, entry: int, data: int) -> bytes:
    """Return the ELF header and program headers, padded up to the first instruction."""
    segments = [_segment(_READ | _EXECUTE, 0, _CODE + code)]
    if data:
        segments.append(_segment(_READ | _WRITE, _DATA, data))
    identity = b"\x7fELF\x02\x01\x01" + bytes(9)
    machine, count = _MACHINES[os.uname().machine], len(segments)
    sizes = (64, 56, count, 0, 0, 0)  # of the ELF header and a program header; no sections
    start = _BASE + _CODE + entry
    header = struct.pack("<HHIQQQIHHHHHH", _ET_EXEC, machine, 1, start, 64, 0, 0, *sizes)
    return (identity + header + b"".join(segments)).ljust(_CODE, b"\0")


def _segment(flags: int, offset: int, size: int) -> bytes:
    """Return the program header of a segment of ``size`` bytes at ``offset`` of the file."""
    address = _BASE + offset
    return struct.pack("<IIQQQQQQ", _PT_LOAD, flags, offset, address, address, size, size, _DATA)
