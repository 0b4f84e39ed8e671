"""Requests to the launcher: one after another, each with a number, and each answer to the request
that it belongs to.

An exception can leave :meth:`Requests.ask` at any moment (Ctrl-C, a timer's signal handler). Then
the launcher is told that nobody waits for the answer, and the answer is discarded when it arrives,
with its descriptors and its container. What changes more than one thing is done with signals
deferred.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Self, TypeVar

from pytest_sandbox.errors import SetupError
from pytest_sandbox.linux import local_socket, process
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.runtime.protocol import Channel, LostDescriptorsError, Message, close_all

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Descriptors", "LauncherGoneError", "Requests"]

#: Seconds for an answer: a container takes milliseconds, one on a large file system of its own some
#: seconds.
_PATIENCE = 120.0
#: Seconds for the rest of a message that has begun, either way.
_STALLED = 30.0
#: Answers that make the caller the owner of something.
_ADOPTED = frozenset({"hello", "created", "renewed"})
_REENTERED = "a finalizer or a signal handler asks while this thread waits for an answer"
_STUCK = (
    "The machine is overloaded, or the launcher was stopped: see its process (ps), and start again."
)

T = TypeVar("T")


class LauncherGoneError(SetupError):
    """The launcher was killed; :func:`pytest_sandbox.client.session.current` makes a new one."""


class Descriptors:
    """The descriptors of an answer; those that are neither taken nor closed when this object goes
    are closed with the next request.

    Not by a finalizer, which a signal handler's exception may end before it has begun.
    """

    __slots__ = ("__weakref__", "_fds")

    def __init__(self, fds: list[int]) -> None:
        self._fds = fds

    def __len__(self) -> int:
        return len(self._fds)

    def take(self) -> int:
        """Return the next one, which is the caller's from now on; -1 where there is none."""
        return self._fds.pop(0) if self._fds else -1

    def first(self) -> int:
        """Return the next one, which stays open until :meth:`close`."""
        return self._fds[0]

    def close(self) -> None:
        """Close those that were not taken."""
        with Deferred():
            close_all(self._fds)
            self._fds.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class Requests:
    """The client's end of the launcher's socket. Any thread may ask; one at a time does.

    ``offered`` is called, with signals deferred, with each container that the launcher offers.
    """

    def __init__(self, channel: Channel, offered: Callable[[Message, Descriptors], None]) -> None:
        local_socket.set_timeouts(channel.socket, _STALLED)
        self.channel = channel
        self.is_gone = False
        self._offered = offered
        self._lock = threading.Lock()
        self._holder = 0
        self._number = 0
        self._unsent: deque[Message] = deque()
        self._received: list[tuple[weakref.ref[Descriptors], list[int]]] = []

    def in_turn(self, func: Callable[[], T]) -> T:
        """Call ``func`` while no other thread asks.

        Raises :class:`SetupError` where this thread is asking already: a finalizer or a signal
        handler has interrupted it, and the answer to the first request would never come.
        """
        thread = threading.get_ident()
        if self._holder == thread:
            raise SetupError(
                "ask the launcher",
                _REENTERED,
                "Use containers outside of finalizers and signal handlers.",
            )
        with self._lock:
            self._holder = thread
            try:
                return func()
            finally:
                self._holder = 0

    def ask(self, message: Message) -> tuple[Message, Descriptors]:
        """Send a message, and return its answer.

        Raises :class:`LauncherGoneError`, and :class:`SetupError` without one in 120 seconds.
        """
        return self.in_turn(lambda: self.ask_in_turn(message))

    def tell(self, message: Message) -> None:
        """Send a message that is not answered; from a finalizer within a request, it is sent with
        the next one. The caller defers signals.
        """
        if self._holder == threading.get_ident():
            self._unsent.append(message)
        else:
            self.in_turn(lambda: self.send_deferred(message))

    def send(self, message: Message) -> None:
        """Send a message, and what was left to be sent before it."""
        with Deferred():
            self.send_deferred(message)

    def send_deferred(self, message: Message) -> None:
        """Do what :meth:`send` does, where the caller defers signals."""
        if self._received:
            self._close_lost()
        try:
            while self._unsent:
                self.channel.send(self._unsent.popleft())
            self.channel.send(message)
        except OSError as error:
            raise self._gone(f" ({error.strerror or error})") from error

    def ask_in_turn(
        self, message: Message, adopt: Callable[[Message, Descriptors], None] | None = None
    ) -> tuple[Message, Descriptors]:
        """Send a message, and return its answer, which ``adopt`` is called with, signals deferred,
        if it brings a container.
        """
        self._number += 1
        number = self._number
        try:
            self.send({**message, "request": number})
            return self.wait(number, adopt)
        except BaseException:
            self._cancel(number)
            raise

    def wait(
        self, number: int | None, adopt: Callable[[Message, Descriptors], None] | None = None
    ) -> tuple[Message, Descriptors]:
        """Wait for the answer to request ``number``, None for the launcher's first word."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            if not process.is_readable(self.channel.fileno(), deadline - time.monotonic()):
                raise SetupError(
                    "ask the launcher", f"no answer within {_PATIENCE:.0f} seconds", _STUCK
                )
            with Deferred():
                answer = self._receive(number, adopt)
            if answer is not None:
                return answer

    def receive_offers(self) -> None:
        """Read what has come, without waiting; the caller defers signals."""
        while process.is_readable(self.channel.fileno()):
            self._receive(-1, None)

    def _receive(
        self, number: int | None, adopt: Callable[[Message, Descriptors], None] | None
    ) -> tuple[Message, Descriptors] | None:
        """Read one message; return it if it is the answer to ``number``."""
        message, fds, error = self._read()
        if message["op"] == "ready":
            if (
                error is None
            ):  # else there was no room for its descriptors, and it is no answer that anybody waits for
                self._offered(message, fds)
            return None
        if message.get("request") != number:
            self._discard(message)
            return None
        if error is not None:
            self._discard(message)
            raise error
        if adopt is not None and message["op"] in _ADOPTED:
            adopt(message, fds)
        return message, fds

    def _read(self) -> tuple[Message, Descriptors, OSError | None]:
        try:
            message, fds = self.channel.receive()
        except LostDescriptorsError as error:
            return error.message, Descriptors([]), OSError(error.errno, error.strerror)
        except (EOFError, OSError):
            raise self._gone() from None
        held = Descriptors(fds)
        if fds:
            self._received.append((weakref.ref(held), fds))
        return message, held, None

    def _close_lost(self) -> None:
        """Close the descriptors of answers whose caller was interrupted before it had taken
        them.
        """
        received, self._received = self._received, []
        for holder, fds in received:
            if holder() is None:
                close_all(fds)
            elif fds:
                self._received.append((holder, fds))

    def _discard(self, message: Message) -> None:
        """Have the launcher close what a late answer brought, where it was not told before that
        nobody waits for it.
        """
        if message["op"] == "created":
            self._unsent.append({"op": "closed", "id": message["id"]})

    def _cancel(self, number: int) -> None:
        if not self.is_gone:
            with contextlib.suppress(LauncherGoneError):
                self.send({"op": "cancel", "answer": number})

    def _gone(self, why: str = "") -> LauncherGoneError:
        """Note that the launcher is dead, or dying: it closes its descriptors before it can be
        waited for.
        """
        self.is_gone = True
        return LauncherGoneError(
            "ask the launcher",
            f"the launcher is gone{why}",
            "Start a new container: it gets a new launcher.",
        )
