"""Copying between descriptors in all directions at once, until a command has ended."""

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
    """Routes from one descriptor to another, and watched descriptors, in one loop over poll(2)."""

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
        """Copy from ``source`` to ``target``, and call ``at_end`` at the end of ``source``.

        ``eager`` is for a non-blocking ``target``: data that it does not accept is buffered, so
        that its reader can write to us at the same time without a deadlock.
        """
        self._routes[source] = _Route(source, target, at_end, eager=eager)

    def watch(self, fd: int, do: Callable[[], object]) -> None:
        """Call ``do`` whenever ``fd`` is readable."""
        self._watched[fd] = do

    def forget(self, fd: int) -> None:
        """Stop copying from ``fd`` and watching it."""
        self._routes.pop(fd, None)
        self._watched.pop(fd, None)

    def step(self, timeout: float | None = None) -> bool:
        """Wait at most ``timeout`` seconds, and handle the descriptors that are ready.

        Returns False if none was.
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
        """Copy the rest of these sources, until their end or until ``quiet`` seconds without
        data.
        """
        self._watched.clear()
        self._routes = {fd: route for fd, route in self._routes.items() if fd in sources}
        while self._routes and self.step(quiet):
            pass


class _Route:
    """One direction, with the data that is not yet written."""

    def __init__(
        self, source: int, target: int, at_end: Callable[[], object] | None, *, eager: bool
    ) -> None:
        self.source = source
        self.target = target
        self.at_end = at_end
        self._eager = eager
        self._pending = b""

    def interest(self) -> list[tuple[int, int]]:
        """Return the descriptors to poll, with their events."""
        found = [(self.source, select.POLLIN)] if len(self._pending) < _MOST_PENDING else []
        return [*found, (self.target, select.POLLOUT)] if self._pending else found

    def move(self, ready: dict[int, int]) -> bool:
        """Copy available data. Returns False at the end of the source or of the target."""
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
            return False  # the terminal has hung up
        return True

    def _write_some(self) -> bool:
        """Write what the target accepts. Returns False if it has no reader."""
        try:
            self._pending = self._pending[os.write(self.target, self._pending) :]
        except BlockingIOError:
            pass
        except OSError:  # the reader has ended
            return False
        return True


def _read(fd: int) -> bytes:
    """Read available data. Returns nothing at the end, which is EIO for a terminal that hung up."""
    try:
        return os.read(fd, _CHUNK)
    except OSError:
        return b""
