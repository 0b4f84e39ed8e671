"""Signals: deferring them, so that a handler's exception does not fall between a system call and
the note of its result.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from pytest_sandbox.linux import syscall as sc

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Deferred", "reset"]


#: Buffers for masks that are not in use: a container takes two, and each costs more than its use.
_spare: list[tuple[bytearray, int]] = []


class Deferred:
    """Block all signals of the calling thread for the duration of a ``with`` block
    (pthread_sigmask(3)).

    Python runs handlers in the main thread. A process-directed signal goes to another thread where
    one does not block it, and the handler still runs in the main thread: then the block can be
    interrupted.
    """

    __slots__ = ("_mask",)

    def __enter__(self) -> None:
        self._mask = _spare.pop() if _spare else _new_mask()
        try:
            # Python looks for signals when the call has been made, and so the mask until then is
            # known.
            sc.pthread_sigmask(sc.SIG_SETMASK, sc.EVERY_SIGNAL, self._mask[1])
        except BaseException:
            sc.pthread_sigmask(sc.SIG_SETMASK, self._mask[1], None)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        sc.pthread_sigmask(sc.SIG_SETMASK, self._mask[1], None)
        _spare.append(self._mask)


def _new_mask() -> tuple[bytearray, int]:
    mask = bytearray(sc.SIGNAL_MASK_SIZE)
    return mask, sc.address_of(mask)


def reset() -> None:
    """Give the process the dispositions and the mask that a new program expects, whatever it
    inherited (execve(2), signal(7)).

    With SIGCHLD ignored the kernel reaps children by itself, and waitpid(2) fails.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
