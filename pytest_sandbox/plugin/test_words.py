"""The words by which the parent names the next test to a process that tests share.

A word is a line: the index of the test in the session, and the services that the parent has started
for it (outside_services.py). The bitwise complement of an index has the process only tear down what
that test does not need: the parent has skipped the tests before it. An empty line, or the end of
the pipe, says that no test follows.
"""

from __future__ import annotations

import os
from contextlib import suppress

__all__ = ["TestWords"]

_CHUNK = 1 << 16
_read, _write = os.read, os.write


class TestWords:
    """Both ends of a pipe; each process closes the other's.

    The parent never waits in a write: the process may be hostile, and not read.
    """

    __test__ = False

    def __init__(self, reader: int, writer: int) -> None:
        self.reader, self.writer = reader, writer
        self._rest = b""
        #: What came with the last word.
        self.services = ""

    @classmethod
    def create(cls) -> TestWords:
        """Return both ends of a new pipe."""
        made = cls(*os.pipe2(os.O_CLOEXEC))
        os.set_blocking(made.writer, False)
        return made

    def send(self, index: int | None, services: str = "") -> bool:
        """Name the next test; None: there is none. Return whether the process can have got it."""
        line = b"\n" if index is None else f"{index} {services}\n".encode()
        with suppress(BrokenPipeError):  # the child has ended: the wait for it finds out
            try:
                return _write(self.writer, line) == len(line)
            except BlockingIOError:
                return False
        return True

    def receive(self) -> int | None:
        """Wait for the next word; None at the end, also when the parent has ended."""
        while b"\n" not in self._rest and (part := _read(self.reader, _CHUNK)):
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        index, _, services = line.partition(b" ")
        self.services = services.decode()
        return int(index) if index else None

    def close_reader(self) -> None:
        """Close the test process's end."""
        os.close(self.reader)

    def close_writer(self) -> None:
        """Close the parent's end."""
        os.close(self.writer)
