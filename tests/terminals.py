"""A pseudo-terminal for the command line: typing, reading with a deadline, resizing, hanging up."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import subprocess
import termios
import time
from typing import TYPE_CHECKING, Self

from command_line import COMMAND

if TYPE_CHECKING:
    import signal

__all__ = ["Terminal", "wait_for"]

PATIENCE = 60.0


def wait_for(condition, patience: float = PATIENCE):
    """Poll ``condition`` until it is true, and return its value.

    Raises :class:`AssertionError` after ``patience`` seconds.
    """
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not true within {patience:g} seconds"
        time.sleep(0.01)
    return found


def _environment() -> dict[str, str]:
    """Return our environment without COLUMNS and LINES, which override the terminal's size."""
    return {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}


class Terminal:
    """The command line with a pseudo-terminal as its controlling terminal: ``with Terminal("run",
    "-it", ...) as screen``.
    """

    def __init__(self, *args: str, rows: int = 30, columns: int = 90, shell: bool = False) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(self.master, (rows, columns))
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        command = list(args) if shell else [*COMMAND, *args]
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            # One system call, so that no lock of another thread is taken.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
            env={**_environment(), "PS1": "$ ", "TERM": "xterm", "HISTFILE": "/dev/null"},
        )
        self.seen = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.slave)
        if self.master >= 0:
            os.close(self.master)

    def type(self, text: str) -> None:
        """Type text."""
        data = text.encode()
        while data:
            data = data[os.write(self.master, data) :]

    def read(self, pattern: str, patience: float = PATIENCE) -> str:
        """Read until the pattern matches new output, and return the output up to its end."""
        deadline = time.monotonic() + patience
        while not (found := re.search(pattern, self.seen)):
            ready, _, _ = select.select(
                [self.master], [], [], max(0.0, deadline - time.monotonic())
            )
            assert ready, f"no {pattern!r} in {self.seen!r}"
            self.seen += os.read(self.master, 65536).decode(errors="replace")
        text, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return text

    def wait(self) -> int:
        """Read output until the end, and return the exit status."""
        wait_for(lambda: self._take() or self.process.poll() is not None)
        return self.process.returncode

    def rest(self) -> str:
        """Return the remaining output."""
        self.wait()
        self._take()
        return self.seen

    def _take(self) -> bool:
        while select.select([self.master], [], [], 0)[0]:
            self.seen += os.read(self.master, 65536).decode(errors="replace")
        return False

    def resize(self, rows: int, columns: int) -> None:
        """Change the size; the kernel sends SIGWINCH to the foreground."""
        termios.tcsetwinsize(self.master, (rows, columns))

    def is_as_it_was(self) -> bool:
        """Whether the terminal has its original settings."""
        return termios.tcgetattr(self.slave) == self.before

    def is_raw(self) -> bool:
        """Whether the terminal is in raw mode."""
        return not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def hang_up(self) -> None:
        """Close the window."""
        os.close(self.master)
        self.master = -1

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the command line itself."""
        self.process.send_signal(number)
