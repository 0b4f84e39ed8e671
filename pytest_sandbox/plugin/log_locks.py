"""The locks of logging handlers at the fork of a test process.

A thread of the parent may be writing a record at that moment, such as a server of a session
fixture. :mod:`logging` renews its own locks in the child, but not the lock of the file that a
handler writes to: the child would wait for it for ever. While a handler's lock is held, no thread
writes.
"""

from __future__ import annotations

import threading
from typing import Any

from pytest_sandbox.plugin import compat

__all__ = ["HeldLocks"]

#: Seconds to wait for each lock: a handler may write to a pipe that nobody reads.
_TIMEOUT = 1.0


class HeldLocks:
    """The locks of all handlers, held if this process has other threads.

    Only the parent calls :meth:`release`: logging renews the locks in the child.
    """

    def __init__(self) -> None:
        self._held: list[Any] = []
        if threading.active_count() > 1:
            self._held = [one for one in compat.logging_locks() if one.acquire(timeout=_TIMEOUT)]

    def release(self) -> None:
        """Release them."""
        for lock in reversed(self._held):
            lock.release()
        self._held = []
