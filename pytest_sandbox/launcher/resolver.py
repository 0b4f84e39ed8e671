"""Resolve names in threads: getaddrinfo(3) blocks, and has no other form."""

from __future__ import annotations

import os
import queue
import select
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.launcher.event_loop import EventLoop

__all__ = ["Resolver"]

_MOST_THREADS: Final = 16
#: A program inside may send queries without an end.
_MOST_REQUESTS: Final = 1000


class Resolver:
    """The threads of one loop, which calls back."""

    def __init__(self, loop: EventLoop) -> None:
        self._requests: queue.SimpleQueue[tuple[str, Callable[[list[str], int], None]]] = (
            queue.SimpleQueue()
        )
        self._results: deque[tuple[Callable[[list[str], int], None], list[str], int]] = deque()
        self._running = self._threads = 0
        self._wakeup, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        loop.watch(self._wakeup, select.EPOLLIN, self._deliver)

    def resolve(self, name: str, then: Callable[[list[str], int], None]) -> None:
        """Call ``then`` in the loop with the addresses of a name, and 0 or the error of
        getaddrinfo(3).
        """
        if self._running >= _MOST_REQUESTS:
            then([], int(socket.EAI_AGAIN))
            return
        self._running += 1
        if self._running > self._threads < _MOST_THREADS:
            self._threads += 1
            threading.Thread(target=self._work, daemon=True).start()
        self._requests.put((name, then))

    def _work(self) -> None:
        while True:
            name, then = self._requests.get()
            self._results.append((then, *_look_up(name)))
            os.write(self._waker, b"\0")

    def _deliver(self, _events: int) -> None:
        os.read(self._wakeup, 1 << 12)
        while self._results:
            then, addresses, error = self._results.popleft()
            self._running -= 1
            then(addresses, error)


def _look_up(name: str) -> tuple[list[str], int]:
    try:
        # As bytes: text would import the encoding for international names.
        found = socket.getaddrinfo(name.encode("ascii"), None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return [], int(error.errno or socket.EAI_FAIL)
    except OSError:
        return [], int(socket.EAI_FAIL)
    return [str(address[4][0]) for address in found], 0
