"""The lock of a layer that is being made.

A layer has two lock files. Processes that need the layer hold a shared lock of the first at any
time; the process that wants to remove it tries to lock it exclusively and never waits. The second
is locked exclusively while the layer is made. The order is: the lock of a layer that is being made,
then the lock of the index (filelock's). No shared lock is ever converted into an exclusive one:
two holders that both convert wait for each other forever (flock(2)).
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from pytest_sandbox.errors import ImageError
from pytest_sandbox.linux.file_lock import try_lock

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

__all__ = ["exclusive_lock"]

_POLL_SECONDS = 0.02
_TIMEOUT = 3600.0


@contextlib.contextmanager
def exclusive_lock(path: str, stopping: threading.Event) -> Iterator[None]:
    """Hold the file ``path`` locked exclusively within the context, and remove it at the end.

    Raises ImageError when ``stopping`` is set, or when another process has held it for an hour.
    """
    deadline = time.monotonic() + _TIMEOUT
    while (fd := try_lock(path, create=True)) is None:
        if time.monotonic() > deadline:
            raise ImageError(
                f"another process has been making this layer for {_TIMEOUT / 60:.0f} minutes. "
                f"End it (`fuser {path}` prints its PID), and try again."
            )
        if stopping.wait(_POLL_SECONDS):
            raise ImageError("interrupted")
    try:
        yield
    finally:
        os.unlink(path)
        os.close(fd)
