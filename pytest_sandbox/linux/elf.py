"""Programs of a few instructions, made in memory: static ELF files in memfds (elf(5),
memfd_create(2)).
"""

from __future__ import annotations

import fcntl
import os
import struct
from functools import cache

from pytest_sandbox.linux import machine_code

__all__ = ["DATA_ADDRESS", "helper_fd", "init_fd"]

#: Where the code and the data begin in the file; tools/machine_code has the same numbers. The data
#: has pages of its own for every page size up to 64 KiB, so that no page is writable and
#: executable.
_CODE, _DATA = 0x100, 0x10000
_BASE = 0x400000
#: The address of the data segment of a program made by :func:`helper_fd`.
DATA_ADDRESS = _BASE + _DATA
_MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine
_PT_LOAD, _ET_EXEC = 1, 2
_READ, _WRITE, _EXECUTE = 4, 2, 1  # p_flags
_MFD_EXEC = 0x10
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def init_fd() -> int:
    """Return a descriptor of the program that is PID 1 of every container.

    It is sealed: a program of the host that could be written to through /proc/1/exe would be an
    escape (CVE-2019-5736).
    """
    return _executable("pytest-sandbox-init", machine_code.INIT[os.uname().machine], 0, b"")


def helper_fd(data: bytes) -> int:
    """Return a descriptor of the spawn helper, whose data segment holds ``data``."""
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
    except OSError:  # before Linux 6.3 there is no such flag, and every memfd is executable
        writable = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(writable, _head(len(code), entry, len(data)) + code)
        if data:
            os.pwrite(writable, data, _DATA)
        fcntl.fcntl(writable, fcntl.F_ADD_SEALS, _SEALS)
        # What is open for writing cannot be executed (ETXTBSY).
        return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)


def _head(code: int, entry: int, data: int) -> bytes:
    """Return the headers of a program, up to its first instruction."""
    segments = [_segment(_READ | _EXECUTE, 0, _CODE + code)]
    if data:
        segments.append(_segment(_READ | _WRITE, _DATA, data))
    identity = b"\x7fELF\x02\x01\x01" + bytes(9)
    machine, count = _MACHINES[os.uname().machine], len(segments)
    sizes = (64, 56, count, 0, 0, 0)  # of the header, of a segment's entry, of no sections
    start = _BASE + _CODE + entry
    header = struct.pack("<HHIQQQIHHHHHH", _ET_EXEC, machine, 1, start, 64, 0, 0, *sizes)
    return (identity + header + b"".join(segments)).ljust(_CODE, b"\0")


def _segment(flags: int, offset: int, size: int) -> bytes:
    """Return the program header of ``size`` bytes that begin at ``offset`` of the file."""
    address = _BASE + offset
    return struct.pack("<IIQQQQQQ", _PT_LOAD, flags, offset, address, address, size, size, _DATA)
