"""Files of its own for what a fork prints: captured output that outlives a crash, and
faulthandler's stack.
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

__all__ = ["Streams", "flush_terminal"]

_MOST = 1 << 20


def flush_terminal() -> None:
    """Write out what pytest itself has printed, while nothing is captured, so that no fork prints
    it again.
    """
    for stream in (sys.__stdout__, sys.__stderr__):
        with suppress(AttributeError, ValueError, OSError):
            stream.flush()  # type: ignore[union-attr]


class Streams:
    """A memory file for each stream that pytest captures by descriptor; what was captured before
    the fork begins it.
    """

    def __init__(self, config: pytest.Config) -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, ValueError, OSError):
                stream.flush()
        self._captured = compat.captured_files(config)
        captured = {fd for _name, file, target in self._captured for fd in (file, target)}
        self.outputs = inherited_files.Outputs(config, without=captured)
        self._files = {
            name: _copied(f"captured-{name}", file) for name, file, _target in self._captured
        }

    def in_fork(self, stack: int) -> None:
        """Let this process capture into its own files, and faulthandler write to ``stack``."""
        for name, file, target in self._captured:
            own = self._files[name]
            os.dup2(own, file, inheritable=False)
            os.dup2(own, target)
            os.close(own)
        self.outputs.in_fork()
        faulthandler.enable(stack)
        faulthandler.register(STACK_SIGNAL, stack)
        # A caller that blocks all signals would keep it from a test that ran too long.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [STACK_SIGNAL])

    def printed(self) -> list[tuple[str, str]]:
        """Return what is in the files, at most a MiB of each: what a fork that ended early had
        printed since its last report.
        """
        return [(name, text) for name, fd in self._files.items() if (text := _tail(fd))]

    def close(self) -> None:
        """Close the files, and copy what is still in the pipes."""
        self.outputs.close()
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()


def _copied(name: str, file: int) -> int:
    copy = os.memfd_create(name, os.MFD_CLOEXEC)
    before = os.pread(file, _MOST, 0)
    if before:
        os.write(copy, before)
    return copy


def _tail(fd: int) -> str:
    size = os.fstat(fd).st_size
    text = os.pread(fd, _MOST, max(0, size - _MOST)).decode(errors="replace")
    return f"[... {size - _MOST} bytes left out ...]\n{text}" if size > _MOST else text
