"""The terminal of the user: in raw mode while a command inside uses it, and then restored."""

from __future__ import annotations

import signal
import termios
import tty
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Raw", "copy_size"]


class Raw:
    """Raw mode of the terminal ``fd``, in which every key is passed to the container:
    ``with Raw(0) as raw``.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[Any] = []

    def __enter__(self) -> Self:
        with suppress(termios.error):
            self._saved = termios.tcgetattr(self._fd)
        self.begin()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.end()

    def begin(self) -> None:
        """Set raw mode. A terminal that has hung up is ignored: its readers notice that."""
        with suppress(termios.error):
            tty.setraw(self._fd, termios.TCSADRAIN)

    def end(self) -> None:
        """Restore the mode. A terminal that has hung up is ignored."""
        with _from_the_background(), suppress(termios.error):
            if self._saved:
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)


@contextmanager
def _from_the_background() -> Iterator[None]:
    """Ignore SIGTTOU, which would stop a background job that sets the terminal's mode."""
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTTOU, before)


def copy_size(source: int, target: int) -> None:
    """Give the terminal ``target`` the size of ``source``, if that is a terminal.

    The kernel sends SIGWINCH to the foreground process group of ``target``.
    """
    with suppress(termios.error):
        termios.tcsetwinsize(target, termios.tcgetwinsize(source))
