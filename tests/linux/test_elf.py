"""The spawn helper, on this architecture and on aarch64 under emulation."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from types import SimpleNamespace

import pytest

from pytest_sandbox.linux import elf, syscall_batch
from pytest_sandbox.linux.syscall_batch import RECORD_SIZE, SyscallBatch

HEADER = 8  # bytes before the list: the descriptor of the status pipe
STDERR = 2


def image_of(*calls):
    """Return the spawn helper for a list of calls, which writes records to stderr, and the list."""
    batch = SyscallBatch()
    for call, *arguments in calls:
        batch.add("try", call, *arguments)
    data = struct.pack("=q", STDERR) + batch.image(elf.DATA_ADDRESS + HEADER, bytes(8))
    fd = elf.helper_fd(bytes(data))
    with open(fd, "rb") as file:
        return file.read(), batch


@pytest.fixture(
    params=["native", pytest.param("aarch64", marks=pytest.mark.needs("qemu-aarch64-static"))]
)
def run(request, monkeypatch, tmp_path):
    """Return a function that runs the helper: it returns exit status, stdout and records."""
    emulator = shutil.which("qemu-aarch64-static")
    if request.param == "aarch64":
        monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="aarch64"))
    caches = (syscall_batch._numbers, elf._helper_code)
    for cache in caches:
        cache.cache_clear()

    def go(*calls):
        content, batch = image_of(*calls)
        path = tmp_path / "helper"
        path.write_bytes(content)
        path.chmod(0o755)
        command = [emulator, path] if request.param == "aarch64" else [path]
        done = subprocess.run(command, check=False, capture_output=True, timeout=60)
        records = [
            done.stderr[at : at + RECORD_SIZE] for at in range(0, len(done.stderr), RECORD_SIZE)
        ]
        return done.returncode, done.stdout, [batch.read_record(record) for record in records]

    yield go
    for cache in caches:
        cache.cache_clear()


def test_a_list_without_an_error(run):
    """The last record is the end of the list."""
    status, printed, records = run(("write", 1, b"hello ", 6), ("write", 1, b"world", 5))
    assert (0, b"hello world", [None]) == (status, printed, [index for index, _result in records])


def test_a_call_that_fails(run):
    """The record has the index of the call and the errno, and later calls are not made."""
    status, printed, records = run(
        ("write", 1, b"hello", 5), ("chdir", b"/no/such/directory"), ("write", 1, b"not this", 8)
    )
    assert (0, b"hello", [(1, -2)]) == (status, printed, records)


def test_the_helper_cannot_be_changed():
    """The file is sealed and cannot be opened for writing."""
    fd = elf.helper_fd(b"data")
    try:
        with pytest.raises(
            OSError, match=r"Operation not permitted|Permission denied|Text file busy"
        ):
            os.truncate(f"/proc/self/fd/{fd}", 0)
    finally:
        os.close(fd)


def test_no_page_is_writable_and_executable():
    """Code and data have separate segments."""
    content, _batch = image_of(("getpid",))
    count = struct.unpack_from("<H", content, 56)[0]
    flags = [struct.unpack_from("<I", content, 64 + 56 * number + 4)[0] for number in range(count)]
    assert [5, 6] == flags
