"""Batches of system calls: results, errors, signals, and the machine code that makes the calls."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from pytest_sandbox.linux import machine_code
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.syscall_batch import SyscallBatch, Table, number

ROOT = Path(__file__).parents[2]


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def spawned(batch: SyscallBatch, flags: int = 0) -> int:
    pid, pidfd = batch.spawn(flags)
    os.close(pidfd)
    return ended(pid)


def test_results():
    """The result of each call is available after run()."""
    batch = SyscallBatch()
    first, second = batch.add("one", "getpid"), batch.add("two", "getppid")
    batch.run()
    assert (os.getpid(), os.getppid()) == (batch[first], batch[second])


def test_a_result_as_an_argument(tmp_path):
    """A descriptor that a call opens can be written to and closed by later calls."""
    batch = SyscallBatch()
    fd = batch.open("open", os.fsencode(tmp_path / "f"), os.O_WRONLY | os.O_CREAT, mode=0o600)
    batch.add("write", "write", fd, b"text", 4)
    batch.close("close", fd)
    batch.run()
    assert "text" == (tmp_path / "f").read_text()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(batch[fd])


def test_an_error_ends_the_batch():
    """The exception has the call with its arguments, and later calls are not made."""
    batch = SyscallBatch()
    batch.add("change directory", "chdir", b"/no/such/directory")
    after = batch.add("after", "getpid")
    with pytest.raises(FileNotFoundError, match=r"chdir\(/no/such/directory\)"):
        batch.run()
    failure = batch.failure()
    assert ("change directory", errno.ENOENT) == (failure.step, failure.errno)
    assert batch[after] < -4096


def test_go_on():
    """An error of a call with go_on does not end the batch."""
    batch = SyscallBatch()
    tried = batch.add("try", "chdir", b"/no/such/directory", go_on=True)
    after = batch.add("after", "getpid")
    batch.run()
    assert (-errno.ENOENT, os.getpid(), None) == (batch[tried], batch[after], batch.failure())


def test_execve(tmp_path):
    """A Table is an array of pointers, as execve(2) takes it."""
    batch = SyscallBatch()
    batch.restore_signals("signals")
    args = (b"sh", b"-c", b'echo "$0 $A" > %s' % os.fsencode(tmp_path / "out"), b"zero", 0)
    batch.add("execute", "execve", b"/bin/sh", Table(args), Table((b"A=b", 0)))
    assert 0 == spawned(batch)
    assert "zero b\n" == (tmp_path / "out").read_text()


def test_a_child_that_executes_no_program():
    """Its exit status is 127, and its results are available in the parent."""
    batch = SyscallBatch()
    inside = batch.add("who", "getpid")
    pid, pidfd = batch.spawn()
    os.close(pidfd)
    assert (pid, 127) == (batch[inside], ended(pid))


def test_signal_mask():
    """Parent and child have the same signal mask as before."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        batch = SyscallBatch()
        batch.restore_signals("signals")
        batch.add(
            "execute",
            "execve",
            b"/bin/grep",
            Table((b"grep", b"-q", b"SigBlk:.*200$", b"/proc/self/status", 0)),
            Table((0,)),
        )
        assert 0 == spawned(batch)
        assert {*old, signal.SIGUSR1} == signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def test_signal_dispositions():
    """Handlers are reset in the child, and ignored signals stay ignored."""
    ran = []
    old = (
        signal.signal(signal.SIGUSR1, lambda *_: ran.append(os.getpid())),
        signal.signal(signal.SIGUSR2, signal.SIG_IGN),
    )
    try:
        batch = SyscallBatch()
        batch.restore_signals("signals")
        me = batch.add("who", "getpid")
        batch.add("ignored", "tkill", me, signal.SIGUSR2)
        batch.add("fatal", "tkill", me, signal.SIGUSR1)
        assert (-signal.SIGUSR1, []) == (spawned(batch), ran)
    finally:
        signal.signal(signal.SIGUSR1, old[0])
        signal.signal(signal.SIGUSR2, old[1])


def test_close_leaks():
    """Descriptors that a failed child has opened in this process are closed."""
    before = sorted(os.listdir("/proc/self/fd"))
    batch = SyscallBatch()
    batch.open("open", b"/", os.O_RDONLY)
    batch.add("fail", "chdir", b"/no/such/directory")
    spawned(batch, sc.CLONE_FILES)
    assert len(before) + 1 == len(os.listdir("/proc/self/fd"))
    batch.close_leaks()
    assert len(before) == len(os.listdir("/proc/self/fd"))


def test_extend():
    """A batch can be appended to several batches."""
    part = SyscallBatch()
    part.add("part", "chdir", b"/no/such/directory", go_on=True)
    for _ in range(2):
        whole = SyscallBatch()
        whole.add("own", "getpid")
        whole.extend(part)
        whole.add("more", "chdir", b"/dev/null")
        with pytest.raises(NotADirectoryError):
            whole.run()


def test_number():
    """The number of a system call is that of the kernel."""
    libc = ctypes.CDLL(None)
    assert os.getpid() == libc.syscall(number("getpid"))


@pytest.mark.parametrize(
    "machine",
    [
        pytest.param(one, marks=pytest.mark.needs(f"assembler_{one}"))
        for one in ("x86_64", "aarch64")
    ],
)
def test_machine_code_matches_its_source(machine):
    """Assembling tools/machine_code/ gives the bytes in the package."""
    import make_machine_code

    assembled = make_machine_code.assemble(machine)
    assert make_machine_code.known(machine) == assembled


@pytest.mark.needs("aarch64-linux-gnu-as", "aarch64-linux-gnu-ld", "qemu-aarch64-static")
def test_aarch64_code_under_emulation(tmp_path):
    """It uses results as arguments, continues or stops at an error, and returns."""
    tools = [
        shutil.which(name)
        for name in ("aarch64-linux-gnu-as", "aarch64-linux-gnu-ld", "qemu-aarch64-static")
    ]
    assembler, linker, emulator = tools
    source = tmp_path / "try.s"
    source.write_text(
        _TRY.format(code=",".join(map(str, machine_code.RUN["aarch64"])), out=tmp_path / "out")
    )
    subprocess.run([assembler, "-o", tmp_path / "try.o", source], check=True)
    subprocess.run([linker, "-N", "-o", tmp_path / "try", tmp_path / "try.o"], check=True)
    done = subprocess.run([emulator, tmp_path / "try"], check=False)
    assert (0, "abc") == (done.returncode, (tmp_path / "out").read_text())


# Runs a list of openat, a write to its result, a chdir that may fail, one that may not, and a call
# that is not reached. The exit status is 0 if the code returns the record that failed, its result
# is -ENOENT, and the last call was not made.
_TRY = """
        .text
        .globl _start
_start: mov x0, #0
        adr x1, list
        bl code
        adr x1, list
        add x2, x1, #(3 * 72)
        cmp x0, x2
        b.ne bad
        ldr x2, [x1, #(3 * 72 + 64)]
        cmn x2, #2
        b.ne bad
        ldr x2, [x1, #(4 * 72 + 64)]
        cmp x2, #77
        b.ne bad
        mov x0, #0
        b end
bad:    mov x0, #1
end:    mov x8, #93
        svc #0
        .balign 8
code:   .byte {code}
        .balign 8
list:   .quad 56, -100, path, 0x241, 0x1a4, 0, 0, 0, 77
        .quad 64, list + 64, text, 3, 0, 0, 0, 4, 77
        .quad 49, none, 0, 0, 0, 0, 0, 1, 77
        .quad 49, none, 0, 0, 0, 0, 0, 0, 77
        .quad 172, 0, 0, 0, 0, 0, 0, 0, 77
        .quad -1
path:   .asciz "{out}"
text:   .asciz "abc"
none:   .asciz "/no"
"""
