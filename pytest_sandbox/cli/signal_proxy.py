"""Signals to this process that are forwarded to the command inside (docker's ``--sig-proxy``)."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["FORWARDED", "Mailbox"]

#: The signals that docker forwards, except those of job control and real-time signals.
FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
)


class Mailbox:
    """Received signals, for a loop over poll(2): ``with Mailbox(signals) as box``.

    A signal that this process was started with ignored (nohup(1)) stays ignored.
    """

    def __init__(self, signals: Iterable[signal.Signals]) -> None:
        self._signals = [one for one in signals if signal.getsignal(one) is not signal.SIG_IGN]
        self._before: dict[signal.Signals, Any] = {}
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def __enter__(self) -> Self:
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for one in self._signals:
            self._before[one] = signal.signal(one, lambda _number, _frame: None)
        return self

    def __exit__(self, *_exception: object) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._reader)
        os.close(self._writer)

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._reader

    def read(self) -> list[int]:
        """Return the numbers of the signals since the last call, in order."""
        try:
            return list(os.read(self._reader, 4096))
        except BlockingIOError:
            return []
