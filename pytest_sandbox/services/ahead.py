"""The service that is started in advance, while the caller uses the one before it.

A thread starts it and waits until it is ready: whoever takes a service waits neither for the start
of the next nor for its own. A process that forks waits until the thread has made the start's
requests, a few milliseconds, so that no fork finds a lock that the thread holds. Without root,
starting a container forks (container/builder.py), so there is no thread.
"""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from pytest_sandbox.client import session
from pytest_sandbox.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.container.container import Container
    from pytest_sandbox.container.network import Network

__all__ = ["StartedAhead"]

#: Seconds that a fork waits for the thread: longer than the client waits for a start (join.py).
_START_TIMEOUT = 90.0


class _Running(Protocol):
    """A running service, as this file sees it."""

    container: Container

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""

    def await_ready(self) -> None:
        """Return once it is ready; close it if it will not be."""


R = TypeVar("R", bound=_Running)


class StartedAhead(Generic[R]):
    """At most one service that was started in advance by ``start``, a function of the network."""

    def __init__(self, start: Callable[[Network | None], R]) -> None:
        self._start = start
        self._owner = os.getpid()
        self._thread: threading.Thread | None = None
        self._has_started = threading.Event()
        self._running: R | None = None
        self._network: Network | None = None
        _all.add(self)

    def begin(self, network: Network | None) -> None:
        """Start one, unless there is one already."""
        self._forget_in_fork()
        if self._thread is not None or self._running is not None:
            return
        self._network = network
        self._has_started.clear()
        if session.current().builder_fd >= 0:
            self._begin()
            return
        self._thread = threading.Thread(target=self._run, name="pytest-sandbox-ahead")
        self._thread.start()

    def _begin(self) -> None:
        try:
            # The next start raises the same error where somebody waits for it.
            with suppress(SandboxError, OSError):
                self._running = self._start(self._network)
        finally:
            self._has_started.set()

    def _run(self) -> None:
        self._begin()
        if self._running is not None:
            with suppress(SandboxError, OSError):  # it is closed then
                self._running.await_ready()

    def take(self, network: Network | None) -> R | None:
        """Return the service that was started for this network once it is ready; None if there is
        none that runs.
        """
        running = self._taken()
        if running is None:
            return None
        if self._network is not network or running.has_ended:
            running.container.close()
            return None
        return running

    def _taken(self) -> R | None:
        self._forget_in_fork()
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        running, self._running = self._running, None
        return running

    def await_start(self) -> None:
        """Wait until the thread has made its requests."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._has_started.wait(_START_TIMEOUT)

    def close(self) -> None:
        """End the service that nobody has taken."""
        self._forget_in_fork()
        self.await_start()
        if self._running is not None:
            self._running.container.close()  # which ends the thread's wait
        self._taken()

    def _forget_in_fork(self) -> None:
        """In a fork, leave the service to the process that has started it."""
        if self._owner != os.getpid():
            self._owner, self._thread, self._running = os.getpid(), None, None


_all: weakref.WeakSet[StartedAhead[Any]] = weakref.WeakSet()


def _await_starts() -> None:
    for one in list(_all):
        one.await_start()


os.register_at_fork(before=_await_starts)
