"""Signals: deferring them, so that a handler's exception does not fall between a system call and the note of its result."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from pytest_sandbox.linux import syscall as sc

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Deferred", "reset"]


class Deferred:
    """Block all signals of the calling thread for the duration of a ``with`` block (pthread_sigmask(3)).

    Python runs handlers in the main thread. A process-directed signal goes to another thread where one does not block it, and the handler
    still runs in the main thread: then the block can be interrupted.
    """

    __slots__ = ("_address", "_before")

    def __enter__(self) -> None:
        self._before = bytearray(sc.SIGNAL_MASK_SIZE)
        self._address = sc.address_of(self._before)
        sc.get_signal_mask(self._address)
        try:
            sc.block_signals(self._address)
        except BaseException:  # of the handler of a signal that came before
            sc.set_signal_mask(self._address)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        sc.set_signal_mask(self._address)


def reset() -> None:
    """Give the process the dispositions and the mask that a new program expects, whatever it inherited (execve(2), signal(7)).

    With SIGCHLD ignored the kernel reaps children by itself, and waitpid(2) fails.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
