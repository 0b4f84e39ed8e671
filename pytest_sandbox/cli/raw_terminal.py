"""The user's own terminal: raw while a command inside has it, as it was before whatever happens."""

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
    """Raw mode of the terminal ``fd``, which every key reaches the container in:
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
        """Make it raw (again, after the user's shell had it); fine where it is gone, which its
        readers are told too.
        """
        with suppress(termios.error):
            tty.setraw(self._fd, termios.TCSADRAIN)

    def end(self) -> None:
        """Make it as it was; fine where it is gone, and where another job has it now."""
        with _from_the_background(), suppress(termios.error):
            if self._saved:
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)


@contextmanager
def _from_the_background() -> Iterator[None]:
    """Set a terminal without being stopped for it (SIGTTOU)."""
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTTOU, before)


def copy_size(source: int, target: int) -> None:
    """Give the terminal ``target`` the size of ``source``, where that is one; the kernel tells the
    programs in it.
    """
    with suppress(termios.error):
        termios.tcsetwinsize(target, termios.tcgetwinsize(source))
