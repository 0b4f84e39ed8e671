"""A pipe between a container and a file outside, moved by a thread.

A command does not get a descriptor of a regular file outside: by /proc/self/fd it could open it
again with other rights (proc_pid_fd(5)).
"""

from __future__ import annotations

import os
import select
import stat
import threading
import time
from contextlib import suppress

from pytest_sandbox.runtime.protocol import close_all

__all__ = ["Pump"]

_CHUNK = 1 << 16
#: Milliseconds between two looks whether anybody still waits for the file.
_LOOK_AGAIN = 100
#: Bytes that a pipe holds at most: the default of /proc/sys/fs/pipe-max-size (pipe(7)).
_PIPE_MAX = 1 << 20


class Pump:
    """A thread that copies from a pipe to the file ``fd``, or with ``reading`` from the file to a
    pipe.

    ``child_end`` is the container's end of the pipe, which the caller closes. The position of the
    file stays as its owner expects it.
    """

    def __init__(self, fd: int, *, reading: bool) -> None:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        self.child_end = read_end if reading else write_end
        self._ours = write_end if reading else read_end
        os.set_blocking(self._ours, reading)  # before any thread may drain it
        self._file = os.dup(fd)
        # poll(2) promises that a pipe or a socket takes this much without waiting.
        self._step = _CHUNK if stat.S_ISREG(os.fstat(fd).st_mode) else select.PIPE_BUF
        self._deadline: float | None = None
        self._moving = threading.Lock()
        self._done = False
        self._error: OSError | None = None
        target = self._feed if reading else self._collect
        threading.Thread(target=target, daemon=True, name="pytest-sandbox-pump").start()

    def _feed(self) -> None:
        with suppress(BrokenPipeError):
            while chunk := os.read(self._file, _CHUNK):
                view = memoryview(chunk)
                while view:
                    view = view[os.write(self._ours, view) :]
        close_all([self._ours, self._file])

    def _collect(self) -> None:
        poll = select.poll()
        poll.register(self._ours, select.POLLIN)
        while not self._done:
            poll.poll()
            with self._moving:
                self._move()
        with self._moving:  # drain() must not use a number that may soon be another file's
            close_all([self._ours, self._file])

    def _move(self) -> None:
        """Write what is in the pipe to the file, but no more than a pipe holds: a writer may never
        stop.
        """
        try:
            for _ in range(_PIPE_MAX // _CHUNK):
                if self._done or not self._move_chunk():
                    return
        except OSError as error:
            self._error, self._done = error, True

    def _move_chunk(self) -> bool:
        try:
            chunk = os.read(self._ours, _CHUNK)
        except BlockingIOError:
            return False
        self._done = not chunk
        view = memoryview(chunk)
        while view:
            if not self._await_writable():
                self._done = True
                return False
            with suppress(BlockingIOError):
                view = view[os.write(self._file, view[: self._step]) :]
        return True

    def _await_writable(self) -> bool:
        """Wait until the file accepts more; return False once nobody waits for that any more."""
        poll = select.poll()
        poll.register(self._file, select.POLLOUT)
        while not poll.poll(_LOOK_AGAIN):
            if self._deadline is not None and time.monotonic() > self._deadline:
                return False
        return True

    def drain(self, timeout: float | None) -> OSError | None:
        """Wait until everything that was written before the call is in the file; return the error
        that prevented it.

        After ``timeout`` seconds (None: no limit) the rest is dropped: nobody reads from the other
        end of the file.
        """
        if timeout is not None:
            self._deadline = time.monotonic() + timeout
        if not self._moving.acquire(timeout=-1 if timeout is None else timeout + 1):
            return None
        try:
            self._move()
            error, self._error = self._error, None
            return error
        finally:
            self._moving.release()
