"""Copying between descriptors until a command has ended: nothing waits for one direction while
another has something to say.
"""

from __future__ import annotations

import errno
import os
import select
from typing import TYPE_CHECKING

from pytest_sandbox.linux import process

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Relay"]

_CHUNK = 1 << 16
_MOST_PENDING = 1 << 18


class Relay:
    """Routes from one descriptor to another, and other descriptors to be watched; one loop over
    poll(2).
    """

    def __init__(self) -> None:
        self._routes: dict[int, _Route] = {}
        self._watched: dict[int, Callable[[], object]] = {}

    def route(
        self,
        source: int,
        target: int,
        *,
        at_end: Callable[[], object] | None = None,
        eager: bool = False,
    ) -> None:
        """Copy what comes from ``source`` to ``target``, and call ``at_end`` when there is no more.

        ``eager``: what ``target``, which does not block, does not take at once is kept, so that its
        reader may be one who writes to us.
        """
        self._routes[source] = _Route(source, target, at_end, eager=eager)

    def watch(self, fd: int, do: Callable[[], object]) -> None:
        """Call ``do`` whenever ``fd`` is readable."""
        self._watched[fd] = do

    def forget(self, fd: int) -> None:
        """Copy and watch no more from ``fd``."""
        self._routes.pop(fd, None)
        self._watched.pop(fd, None)

    def step(self, timeout: float | None = None) -> bool:
        """Wait for something to do, at most ``timeout`` seconds, and do it; False where nothing
        came.
        """
        poll = select.poll()
        for fd in self._watched:
            poll.register(fd, select.POLLIN)
        masks: dict[int, int] = {}
        for route in self._routes.values():
            for fd, mask in route.interest():
                masks[fd] = masks.get(fd, 0) | mask
        for fd, mask in masks.items():
            poll.register(fd, mask)
        ready = dict(poll.poll(process.milliseconds(timeout)))
        for fd in [fd for fd in self._watched if fd in ready]:
            self._watched[fd]()
        for route in list(self._routes.values()):
            if not route.move(ready):
                self._routes.pop(route.source, None)
                if route.at_end is not None:
                    route.at_end()
        return bool(ready)

    def drain(self, sources: list[int], quiet: float) -> None:
        """Copy the rest of these sources: to their end, or until none of them has said anything for
        ``quiet`` seconds.
        """
        self._watched.clear()
        self._routes = {fd: route for fd, route in self._routes.items() if fd in sources}
        while self._routes and self.step(quiet):
            pass


class _Route:
    def __init__(
        self, source: int, target: int, at_end: Callable[[], object] | None, *, eager: bool
    ) -> None:
        self.source = source
        self.target = target
        self.at_end = at_end
        self._eager = eager
        self._pending = b""

    def interest(self) -> list[tuple[int, int]]:
        """Return the descriptors to poll, and for what."""
        found = [(self.source, select.POLLIN)] if len(self._pending) < _MOST_PENDING else []
        return [*found, (self.target, select.POLLOUT)] if self._pending else found

    def move(self, ready: dict[int, int]) -> bool:
        """Copy what is there; False at the end of the source, or where nobody reads the target."""
        if ready.get(self.source, 0) & ~select.POLLOUT:
            data = _read(self.source)
            if not data:
                return False
            self._pending += data
        if not self._pending:
            return True
        if self._eager:
            return self._write_some()
        try:
            while self._pending:
                self._pending = self._pending[os.write(self.target, self._pending) :]
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False  # the terminal is gone
        return True

    def _write_some(self) -> bool:
        try:
            self._pending = self._pending[os.write(self.target, self._pending) :]
        except BlockingIOError:
            pass
        except OSError:  # whoever read it has ended: what is left is for nobody
            return False
        return True


def _read(fd: int) -> bytes:
    """Read what is there; nothing at the end, which a terminal whose other side is closed tells as
    EIO.
    """
    try:
        return os.read(fd, _CHUNK)
    except OSError:
        return b""
