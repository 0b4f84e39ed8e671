"""Block signals around system calls, and reset signal dispositions (signal(7)).

An exception of a signal handler between a system call and the assignment of its result would leak a
descriptor or a process.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from pytest_sandbox.linux import native_code
from pytest_sandbox.linux import syscall as sc

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Deferred", "reset"]


#: Unused buffers for masks: allocating one takes longer than using it.
_spare: list[tuple[bytearray, int]] = []


class Deferred:
    """A ``with`` block in which all signals of the calling thread are blocked (pthread_sigmask(3)).

    It can still be interrupted if another thread does not block signals: the kernel delivers a
    process-directed signal to that thread, and Python runs the handler in the main thread.
    """

    __slots__ = ("_mask",)

    def __enter__(self) -> None:
        self._mask = _spare.pop() if _spare else _new_mask()
        try:
            # Python runs pending handlers after the call, so an exception here finds the old mask
            # saved.
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
    return mask, native_code.address_of(mask)


def reset() -> None:
    """Reset the inherited disposition of SIGCHLD and the signal mask (execve(2)).

    If SIGCHLD is ignored, the kernel reaps children, and waitpid(2) fails.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
