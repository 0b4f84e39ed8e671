"""Descriptors that one operation opens and closes, whenever an exception of a signal handler comes.

A handler can raise before the first instruction of a ``finally`` clause or of ``__exit__``, so
neither is enough. What such an exception leaves open is closed by the next operation.
"""

from __future__ import annotations

import os
import weakref
from collections import deque

from pytest_sandbox.linux.signals import Deferred

__all__ = ["TemporaryDescriptors"]

#: The objects that may have open descriptors, with these. A deque: its methods are atomic, so no
#: lock is needed, which a signal handler could wait for.
_registered: deque[tuple[weakref.ref[TemporaryDescriptors], list[int]]] = deque()


class TemporaryDescriptors:
    """Descriptors to close with :meth:`close`; create it, and change ``fds``, with signals
    deferred. Negative numbers in it stand for none.
    """

    __slots__ = ("__weakref__", "fds")

    def __init__(self, fds: list[int] | None = None) -> None:
        """Own ``fds``; without them, those that are appended later."""
        _close_lost()
        self.fds = [] if fds is None else fds
        if fds != []:
            _registered.append((weakref.ref(self), self.fds))

    def close(self) -> None:
        """Close the descriptors."""
        with Deferred():
            _close(self.fds)


def _close_lost() -> None:
    """Close the descriptors of objects that nobody refers to any more."""
    for _ in range(len(_registered)):
        try:
            entry = _registered.popleft()
        except IndexError:  # another thread was faster
            return
        reference, fds = entry
        if reference() is None:
            _close(fds)
        else:
            _registered.append(entry)


def _close(fds: list[int]) -> None:
    while fds:
        if (fd := fds.pop()) >= 0:
            os.close(fd)
