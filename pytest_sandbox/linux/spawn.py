"""Start a process in a container without exposing the calling process to the container.

A process becomes a member of a PID namespace when it is forked (pid_namespaces(7)). A fork of the
caller, or a child that shares its memory (posix_spawn(3)), would show the caller's memory, command
line and environment to other processes in the container through /proc (as in CVE-2016-9962), and
they could stop it while the caller waits for it. So there are three processes::

    caller ─ clone3(VM | VFORK), execveat ─▶ spawn helper ─ clone3(PARENT) ─▶ payload
                                             not in the PID namespace         in the PID namespace

The helper is a static executable of a few hundred bytes in a memfd (linux/elf.py). It has only the
descriptors that it needs, is not dumpable, joins the namespaces, forks the payload, and exits. The
payload is a child of the *caller* (CLONE_PARENT), as subprocess.Popen requires, and shares memory
with no process. Both run the same :class:`~pytest_sandbox.linux.syscall_batch.SyscallBatch`. The
status pipe, which closes on exec, transfers the records of calls that have failed or whose result
is needed.
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
from pytest_sandbox.linux.temporary_descriptors import TemporaryDescriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from contextlib import AbstractContextManager

    from pytest_sandbox.linux.syscall_batch import Failure, Result

__all__ = ["Spawn", "Status", "add_helper_start"]

#: The command name (proc_pid_comm(5)) of the helper, and of a payload before execve(2).
NAME = b"pytest-sandbox"
#: Seconds for a process to end after it was killed.
_EXIT_TIMEOUT = 2.0


class Status(NamedTuple):
    """The result of a spawn.

    - ``pid``: the PID of the payload, or 0.
    - ``failures``: the calls that failed in helper and payload, in order.
    - ``executed``: whether the payload has executed its program, or was killed before.
    - ``late``: whether neither had happened at the deadline.

    A payload that has not executed its program was reaped.
    """

    pid: int
    failures: list[Failure]
    executed: bool
    late: bool


def add_helper_start(batch: SyscallBatch) -> None:
    """Append the first calls of the helper: it and its children are not dumpable (prctl(2))."""
    batch.add("start the spawn helper", "prctl", sc.PR_SET_DUMPABLE, 0, 0, 0, 0)
    batch.add("start the spawn helper", "prctl", sc.PR_SET_NAME, NAME, 0, 0, 0)


class Spawn:
    """The start of a payload: ``with Spawn(...) as spawn: spawn.run(deadline, adopt)``.

    ``clone`` is the call of the batch that forks the payload; ``fds`` are the descriptors that the
    batch uses. ``unthrottled`` returns a context in which a killed payload gets enough CPU time to
    exit.
    """

    def __init__(
        self,
        batch: SyscallBatch,
        clone: Result,
        fds: Collection[int],
        unthrottled: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._unthrottled = unthrottled
        self._batch = batch
        self._clone = clone
        self._fds = fds
        self._reader = self._writer = self._pidfd = self._helper_pidfd = -1
        self._pid = self._helper = 0
        self._failed: list[tuple[int, int]] = []  # (index, result)
        self._ended = False
        self._data = b""

    def __enter__(self) -> Self:
        with Deferred():
            self._opened = TemporaryDescriptors()
            self._reader, self._writer = os.pipe2(os.O_CLOEXEC)
            self._opened.fds += (self._reader, self._writer)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._opened.close()

    def add_execute(
        self, commands: list[bytes], args: list[bytes], environment: list[bytes]
    ) -> None:
        """Append executing the first of ``commands`` that can be executed, like execvp(3).

        Each failed execve(2) is reported, because the caller needs its errno.
        """
        arguments = Table((*args, 0)), Table((*environment, 0))
        attempts = [
            self._batch.add("execute", "execve", command, *arguments, go_on=True)
            for command in commands
        ]
        size = len(attempts) * RECORD_SIZE
        self._batch.add("execute", "write", self._writer, Record(attempts[0].index), size)

    def run(self, deadline: float, adopt: Callable[[int], None]) -> Status:
        """Start the helper, and wait until the payload has executed its program or ended.

        ``deadline`` is a time of :func:`time.monotonic`; a payload that is late is killed and
        reaped. The PID of one that has executed its program is passed to ``adopt`` before a signal
        handler can raise an exception. Raises OSError if the helper cannot be started.
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
        """Execute the helper in a child that shares this process's memory until then."""
        data = struct.pack("=q", self._writer)
        data += self._batch.image(elf.DATA_ADDRESS + len(data), mask)
        image = elf.helper_fd(data)
        try:
            self._helper, self._helper_pidfd = _execute_helper(image, {*self._fds, self._writer})
            self._opened.fds.append(self._helper_pidfd)
        finally:
            os.close(image)
            self._opened.fds.remove(self._writer)
            os.close(self._writer)

    def _read(self, deadline: float) -> bool:
        """Read records until helper and payload have closed the pipe; return False if late."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        while poll.poll(process.milliseconds(deadline - time.monotonic())):
            with Deferred():
                data = os.read(self._reader, 1 << 16)
                self._parse(data)
            if not data:
                return True
        return False

    def _reap(self) -> None:
        """Reap the helper, and read the records that are still in the pipe.

        Processes of the container cannot stop the helper, but the machine may be slow.
        """
        if self._helper_pidfd < 0:
            return
        if not process.ended(self._helper_pidfd, _EXIT_TIMEOUT):
            process.kill(self._helper_pidfd, signal.SIGKILL)
        process.await_exit(self._helper, self._helper_pidfd, _EXIT_TIMEOUT)
        os.set_blocking(self._reader, False)
        with suppress(BlockingIOError):
            while data := os.read(self._reader, 1 << 16):
                self._parse(data)

    def _parse(self, data: bytes) -> None:
        """Parse the records that were received."""
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
                    self._opened.fds.append(self._pidfd)
            else:
                self._failed.append((index, result))

    def _status(self, *, late: bool) -> Status:
        if late and self._pid and process.comm(self._pid) not in {NAME, b""}:
            # It has executed its program: a fork of this process has the pipe open.
            late = False
        if not late and self._pid and not self._ended and not self._has_failed():
            return Status(self._pid, [], executed=True, late=False)
        self._kill()
        failures = [self._batch.failure_of(*one) for one in self._failed]
        return Status(self._pid, failures, executed=False, late=late)

    def _has_failed(self) -> bool:
        """Return whether a call failed that must not."""
        return any(not self._batch.may_fail(index) for index, _result in self._failed)

    def _kill(self) -> None:
        """Kill and reap a payload that has not executed its program."""
        if self._pid and self._pidfd >= 0:
            process.kill(self._pidfd, signal.SIGKILL)
            with self._unthrottled():
                process.await_exit(self._pid, self._pidfd, _EXIT_TIMEOUT)


def _execute_helper(image: int, fds: Collection[int]) -> tuple[int, int]:
    """Execute ``image`` with the descriptors ``fds``; return its PID and a pidfd."""
    batch, step = SyscallBatch(), "start the spawn helper"
    batch.add(step, "close_range", 0, sc.MAX_FD, sc.CLOSE_RANGE_CLOEXEC)
    for fd in fds:
        batch.add(step, "fcntl", fd, fcntl.F_SETFD, 0)
    batch.add(step, "execveat", image, b"", Table((NAME, 0)), Table((0,)), sc.AT_EMPTY_PATH)
    pid, pidfd = batch.spawn()
    failure = batch.failure()
    if failure is not None:
        process.await_exit(pid, pidfd, _EXIT_TIMEOUT)
        os.close(pidfd)
        raise failure.error()
    return pid, pidfd
