"""Start a process in other namespaces without showing it anything of the calling process.

The kernel makes a process a member of a PID namespace when it is forked. A fork of the caller, or a
child that shares its memory (posix_spawn(3)), would carry the caller's memory, command line and
environment to where others can look at them in /proc (CVE-2016-9962 was of that kind), and could be
stopped there while the caller waits for it. So there are three processes::

    caller ─ clone3(VM | VFORK), execveat ─▶ spawn helper ─ clone3(PARENT) ─▶ payload
                                             not in the PID namespace         in the PID namespace

The helper is a static program of a few hundred bytes in a memfd (linux/elf.py). It holds the
descriptors that it was given, is not dumpable, enters the namespaces, makes the payload, and ends.
The payload is a child of the *caller* (CLONE_PARENT), as subprocess.Popen needs it, and shares
memory with nobody. Both run one :class:`~pytest_sandbox.linux.syscall_batch.SyscallBatch`; a record that
ends it, or that one of its calls writes, comes back through the status pipe, which closes on exec.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import time
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, NamedTuple, Self

from pytest_sandbox.linux import elf, process
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.linux.syscall_batch import RECORD_SIZE, Record, SyscallBatch, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from contextlib import AbstractContextManager

    from pytest_sandbox.linux.syscall_batch import Failure, Result

__all__ = ["Spawn", "Status", "add_helper_start"]

#: The name of the helper, and of a payload until it executes its program (comm of
#: proc_pid_comm(5)).
NAME = b"pytest-sandbox"
#: Seconds that a process may take to end once it was killed.
_PATIENCE = 2.0


class Status(NamedTuple):
    """What became of a spawn.

    ``pid`` is the payload's PID, 0 where there is none; ``failures`` are the calls that failed in
    helper and payload, in order; ``executed`` tells that the program was executed, or the payload
    killed before; ``late`` that neither had happened when the time was over. Whoever has not
    executed anything has been reaped.
    """

    pid: int
    failures: list[Failure]
    executed: bool
    late: bool


def add_helper_start(batch: SyscallBatch) -> None:
    """Append what every helper does first: nobody but root may look at it, or at what it forks."""
    batch.add("start the spawn helper", "prctl", sc.PR_SET_DUMPABLE, 0, 0, 0, 0)
    batch.add("start the spawn helper", "prctl", sc.PR_SET_NAME, NAME, 0, 0, 0)


class Spawn:
    """One start of a payload: ``with Spawn(...) as spawn: spawn.run(deadline)``.

    ``clone`` is the call of the batch that makes the payload; ``kept`` are the descriptors that
    the batch uses, under the numbers that they have here. ``hurrying`` returns a context in which
    a killed payload gets the CPU time that it takes to end.
    """

    def __init__(
        self,
        batch: SyscallBatch,
        clone: Result,
        kept: Collection[int],
        hurrying: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._hurrying = hurrying
        self._batch = batch
        self._clone = clone
        self._kept = kept
        self._reader = self._writer = self._pidfd = self._helper_pidfd = -1
        self._pid = self._helper = 0
        self._failed: list[tuple[int, int]] = []  # which calls, with which results
        self._ended = False
        self._data = b""

    def __enter__(self) -> Self:
        try:
            with Deferred():
                self._reader, self._writer = os.pipe2(os.O_CLOEXEC)
        except BaseException:  # of a signal handler, when it may run again
            self._close()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self._close()

    def _close(self) -> None:
        with Deferred():
            for name in ("_reader", "_writer", "_pidfd", "_helper_pidfd"):
                self._close_one(name)

    def _close_one(self, name: str) -> None:
        fd = getattr(self, name)
        setattr(self, name, -1)
        if fd >= 0:
            os.close(fd)

    def add_execute(
        self, commands: list[bytes], words: list[bytes], environment: list[bytes]
    ) -> None:
        """Append what the payload does last: execute the first of ``commands`` that can be, as
        execvp(3).

        What fails is reported, for errno alone tells the caller why.
        """
        arguments = Table((*words, 0)), Table((*environment, 0))
        tries = [
            self._batch.add("execute", "execve", command, *arguments, go_on=True)
            for command in commands
        ]
        size = len(tries) * RECORD_SIZE
        self._batch.add("execute", "write", self._writer, Record(tries[0].index), size)

    def run(self, deadline: float, adopt: Callable[[int], None]) -> Status:
        """Start the helper, and wait until the payload has executed its program, or ended.

        ``deadline`` is a time of :func:`time.monotonic`. A payload that is late is killed and
        reaped; one that has executed its program is passed to ``adopt`` before any signal handler
        of this process can raise. Raises :class:`OSError` where the helper cannot be started.
        """
        mask = sc.signal_mask()
        late = True
        try:
            with Deferred():
                self._start(mask)
            late = not self._read(deadline)
        finally:
            with Deferred():
                self._reap()
                status = self._status(late=late)
                if status.executed:
                    adopt(status.pid)
        return status

    def _start(self, mask: bytes) -> None:
        """Execute the helper in a child that shares this memory until then."""
        data = struct.pack("=q", self._writer)
        data += self._batch.image(elf.DATA_ADDRESS + len(data), mask)
        image = elf.helper_fd(data)
        try:
            self._helper, self._helper_pidfd = _executed(image, {*self._kept, self._writer})
        finally:
            os.close(image)
            self._close_one("_writer")

    def _read(self, deadline: float) -> bool:
        """Read what helper and payload report, until both have closed the pipe; False if late."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        while poll.poll(process.milliseconds(deadline - time.monotonic())):
            with Deferred():
                data = os.read(self._reader, 1 << 16)
                self._note(data)
            if not data:
                return True
        return False

    def _reap(self) -> None:
        """Wait for the helper, and take what has been reported and not been read.

        No process of the container can stop the helper, but the machine may be slow.
        """
        if self._helper_pidfd < 0:
            return
        if not process.ended(self._helper_pidfd, _PATIENCE):
            process.kill(self._helper_pidfd, signal.SIGKILL)
        process.await_exit(self._helper, self._helper_pidfd, _PATIENCE)
        os.set_blocking(self._reader, False)
        with suppress(BlockingIOError):
            while data := os.read(self._reader, 1 << 16):
                self._note(data)

    def _note(self, data: bytes) -> None:
        self._data += data
        while len(self._data) >= RECORD_SIZE:
            record, self._data = self._data[:RECORD_SIZE], self._data[RECORD_SIZE:]
            index, result = self._batch.read_record(record)
            if index is None:
                self._ended = True
            elif index == self._clone.index and result > 0:
                self._pid = result
                with suppress(ProcessLookupError):
                    self._pidfd = os.pidfd_open(result)
            else:
                self._failed.append((index, result))

    def _status(self, *, late: bool) -> Status:
        if late and self._pid and process.comm(self._pid) not in {NAME, b""}:
            late = False  # it has executed its program: a fork of this process holds the pipe open
        if not late and self._pid and not self._ended and not self._has_failed():
            return Status(self._pid, [], executed=True, late=False)
        self._kill()
        failures = [self._batch.failure_of(*one) for one in self._failed]
        return Status(self._pid, failures, executed=False, late=late)

    def _has_failed(self) -> bool:
        """Tell whether a call failed that may not."""
        return any(not self._batch.may_fail(index) for index, _result in self._failed)

    def _kill(self) -> None:
        """End a payload that nobody will wait for."""
        if self._pid and self._pidfd >= 0:
            process.kill(self._pidfd, signal.SIGKILL)
            with self._hurrying():
                process.await_exit(self._pid, self._pidfd, _PATIENCE)


def _executed(image: int, kept: Collection[int]) -> tuple[int, int]:
    """Execute the helper ``image`` with the descriptors ``kept``; return its PID and a pidfd."""
    batch, step = SyscallBatch(), "start the spawn helper"
    batch.add(step, "close_range", 0, sc.MOST_FDS, sc.CLOSE_RANGE_CLOEXEC)
    for fd in kept:
        batch.add(step, "fcntl", fd, fcntl.F_SETFD, 0)
    batch.add(step, "execveat", image, b"", Table((NAME, 0)), Table((0,)), sc.AT_EMPTY_PATH)
    pid, pidfd = batch.spawn()
    failure = batch.failure()
    if failure is not None:
        process.await_exit(pid, pidfd, _PATIENCE)
        os.close(pidfd)
        raise failure.error()
    return pid, pidfd
