"""Captured output of a test process: files of its own, which the parent can read after a crash.

pytest captures into temporary files. A test process that shared them would share the parent's file
offsets. So it captures into memory files (memfd_create(2)), which start with what was captured
before the fork. protocol.py creates them; test_process.py switches to them.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.plugin import compat, inherited_files
from pytest_sandbox.plugin.report_channel import STACK_SIGNAL

if TYPE_CHECKING:
    import pytest

__all__ = ["CapturedOutput", "flush_terminal"]

#: Bytes of a stream that are copied into the test process, and that a crash report shows.
_MAX_BYTES = 1 << 20


def flush_terminal() -> None:
    """Write out what pytest itself has printed, so that no test process prints it again."""
    for stream in (sys.__stdout__, sys.__stderr__):
        with suppress(AttributeError, ValueError, OSError):
            stream.flush()  # type: ignore[union-attr]


class CapturedOutput:
    """A memory file for each stream that pytest captures by descriptor.

    ``inherited`` replaces the other open files of the parent.
    """

    def __init__(self, config: pytest.Config) -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, ValueError, OSError):
                stream.flush()
        self._captured = compat.captured_files(config)
        fds = {fd for _name, file, target in self._captured for fd in (file, target)}
        self.inherited = inherited_files.InheritedFiles(config, without=fds)
        self._files = {
            name: _copied(f"captured-{name}", file) for name, file, _target in self._captured
        }

    def in_child(self, stack_writer: int) -> None:
        """Capture into the memory files; have faulthandler write stacks to ``stack_writer``."""
        for name, file, target in self._captured:
            own = self._files[name]
            os.dup2(own, file, inheritable=False)
            os.dup2(own, target)
            os.close(own)
        self.inherited.in_child()
        faulthandler.enable(stack_writer)
        faulthandler.register(STACK_SIGNAL, stack_writer)
        # A caller that blocks all signals would keep it from a test that ran too long.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [STACK_SIGNAL])

    def drain(self) -> None:
        """Copy what a test has written, while its process waits for the next test."""
        for reader in self.inherited.readers:
            self.inherited.copy_all(reader)

    def read(self) -> list[tuple[str, str]]:
        """Return name and content of each stream: the last MiB of what a test process that ended
        early had printed since its last report.
        """
        return [(name, text) for name, fd in self._files.items() if (text := _tail(fd))]

    def abandon(self) -> None:
        """Close everything in the process of another test."""
        self.inherited.abandon()
        self._close_files()

    def close(self) -> None:
        """Close the files; copy what is left in the pipes."""
        self.inherited.close()
        self._close_files()

    def _close_files(self) -> None:
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()


def _copied(name: str, file: int) -> int:
    copy = os.memfd_create(name, os.MFD_CLOEXEC)
    before = os.pread(file, _MAX_BYTES, 0)
    if before:
        os.write(copy, before)
    return copy


def _tail(fd: int) -> str:
    size = os.fstat(fd).st_size
    start = max(0, size - _MAX_BYTES)
    text = os.pread(fd, _MAX_BYTES, start).decode(errors="replace")
    return f"[... {start} bytes left out ...]\n{text}" if start else text
