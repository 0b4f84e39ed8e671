"""Removal of the cgroups of containers that have ended."""

from __future__ import annotations

import errno
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.errors import UnsupportedError

if TYPE_CHECKING:
    from pytest_sandbox.linux.cgroup import Cgroup

__all__ = ["CgroupRemover"]

#: Seconds to wait for a cgroup within one try.
_TRY_TIMEOUT = 0.002
#: Seconds between two tries, and until no more are made: the end of the session removes the rest.
_RETRY_INTERVAL = 0.01
_RETRY_TIMEOUT = 10.0


class CgroupRemover:
    """Removes cgroups, without waiting for those that are busy: :meth:`retry` tries them again.

    The kernel answers EBUSY until it has released the last process of a cgroup.
    """

    def __init__(self) -> None:
        self._busy: list[tuple[Cgroup, float]] = []

    def remove(self, cgroup: Cgroup) -> None:
        """Remove a cgroup, now or later."""
        if not self._try_remove(cgroup):
            # On cgroup v1 a frozen process does not die before it is thawed.
            with suppress(OSError, UnsupportedError):
                cgroup.thaw()
            self._busy.append((cgroup, time.monotonic() + _RETRY_TIMEOUT))

    def _try_remove(self, cgroup: Cgroup) -> bool:
        try:
            cgroup.remove(_TRY_TIMEOUT)
        except OSError as error:
            return error.errno != errno.EBUSY  # any other error: the end of the session tries again
        return True

    def retry(self) -> None:
        """Try again to remove the busy cgroups."""
        if self._busy:
            now = time.monotonic()
            self._busy = [
                (cgroup, end)
                for cgroup, end in self._busy
                if not self._try_remove(cgroup) and end > now
            ]

    def next_retry(self) -> float | None:
        """Return the seconds until :meth:`retry` should be called, None if nothing is busy."""
        return _RETRY_INTERVAL if self._busy else None
