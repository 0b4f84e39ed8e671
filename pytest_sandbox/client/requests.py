"""Requests to the launcher, one after another, and their answers.

An exception can leave :meth:`Requests.ask` at any moment (Ctrl-C, a timer's signal handler). The
launcher is then told that nobody waits for the answer, and the answer is discarded when it arrives,
with its descriptors and its container. So each request has a number, which its answer repeats, and
changes of more than one variable are made with signals deferred.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Self, TypeVar

from pytest_sandbox.errors import SetupError
from pytest_sandbox.linux import local_socket, process
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.linux.temporary_descriptors import TemporaryDescriptors
from pytest_sandbox.runtime.protocol import Channel, LostDescriptorsError, Message

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Descriptors", "LauncherGoneError", "Requests"]

#: Seconds for an answer. A container takes milliseconds, one with a file system of its own seconds.
_ANSWER_TIMEOUT = 120.0
#: Seconds for the rest of a message that has begun, in either direction.
_MESSAGE_TIMEOUT = 30.0
#: Answers with something that the caller has to close.
_ADOPTED = frozenset({"hello", "created", "renewed"})
_REENTERED = "a finalizer or a signal handler sends a request while this thread waits for an answer"
_STUCK = (
    "The machine is overloaded, or the launcher was stopped: look at its process with ps, and try "
    "again."
)

T = TypeVar("T")


class LauncherGoneError(SetupError):
    """The launcher was killed; :func:`pytest_sandbox.client.session.current` starts a new one."""


class Descriptors(TemporaryDescriptors):
    """The descriptors of an answer."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self.fds)

    def take(self) -> int:
        """Return the next one, which the caller owns from now on; -1 if there is none."""
        return self.fds.pop(0) if self.fds else -1

    def first(self) -> int:
        """Return the next one, which stays open until :meth:`close`."""
        return self.fds[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class Requests:
    """The client's end of the launcher's socket. Any thread may send; one at a time does.

    ``on_prewarmed`` is called, with signals deferred, for each container that the launcher has
    prewarmed.
    """

    def __init__(
        self, channel: Channel, on_prewarmed: Callable[[Message, Descriptors], None]
    ) -> None:
        local_socket.set_timeouts(channel.socket, _MESSAGE_TIMEOUT)
        self.channel = channel
        self.is_gone = False
        self._on_prewarmed = on_prewarmed
        self._lock = threading.Lock()
        self._holder = 0
        self._request_id = 0
        self._unsent: deque[Message] = deque()

    def serialized(self, func: Callable[[], T]) -> T:
        """Call ``func`` while no other thread sends requests.

        Raises :class:`SetupError` if this thread is in a request already: a finalizer or a signal
        handler has interrupted it, and waiting for the lock would never end. Raises
        :class:`LauncherGoneError` if the socket is closed.
        """
        thread = threading.get_ident()
        if self._holder == thread:
            raise SetupError(
                "send a request to the launcher",
                _REENTERED,
                "Use containers outside of finalizers and signal handlers.",
            )
        with self._lock:
            if (
                self.channel.fileno() < 0
            ):  # another thread has replaced the launcher, which has died
                raise self._gone()
            self._holder = thread
            try:
                return func()
            finally:
                self._holder = 0

    def ask(self, message: Message) -> tuple[Message, Descriptors]:
        """Send a request, and return its answer.

        Raises :class:`LauncherGoneError`, and :class:`SetupError` after 120 seconds without an
        answer.
        """
        return self.serialized(lambda: self.ask_serialized(message))

    def tell(self, message: Message) -> None:
        """Send a message that is not answered. The caller defers signals.

        From a finalizer within a request, it is sent with the next message.
        """
        if self._holder == threading.get_ident():
            self._unsent.append(message)
        else:
            self.serialized(lambda: self.send_deferred(message))

    def send(self, message: Message) -> None:
        """Send a message, after those that could not be sent before."""
        with Deferred():
            self.send_deferred(message)

    def send_deferred(self, message: Message) -> None:
        """Send a message as :meth:`send`, where the caller defers signals."""
        try:
            while self._unsent:
                self.channel.send(self._unsent.popleft())
            self.channel.send(message)
        except OSError as error:
            raise self._gone(f" ({error.strerror or error})") from error

    def ask_serialized(
        self, message: Message, adopt: Callable[[Message, Descriptors], None] | None = None
    ) -> tuple[Message, Descriptors]:
        """Send a request within :meth:`serialized`, and return its answer.

        ``adopt`` is called with an answer that brings a container, with signals deferred.
        """
        self._request_id += 1
        request_id = self._request_id
        try:
            self.send({**message, "request": request_id})
            return self.wait(request_id, adopt)
        except BaseException:
            self._cancel(request_id)
            raise

    def wait(
        self, request_id: int | None, adopt: Callable[[Message, Descriptors], None] | None = None
    ) -> tuple[Message, Descriptors]:
        """Wait for the answer to a request; None for the launcher's first message."""
        deadline = time.monotonic() + _ANSWER_TIMEOUT
        while True:
            if not process.is_readable(self.channel.fileno(), deadline - time.monotonic()):
                raise SetupError(
                    "send a request to the launcher",
                    f"no answer within {_ANSWER_TIMEOUT:.0f} seconds",
                    _STUCK,
                )
            with Deferred():
                answer = self._receive(request_id, adopt)
            if answer is not None:
                return answer

    def receive_prewarmed(self) -> None:
        """Read the messages that have arrived, without waiting; the caller defers signals."""
        while process.is_readable(self.channel.fileno()):
            self._receive(-1, None)

    def _receive(
        self, request_id: int | None, adopt: Callable[[Message, Descriptors], None] | None
    ) -> tuple[Message, Descriptors] | None:
        """Read one message; return it if it is the answer to this request."""
        message, fds, error = self._read()
        if message["op"] == "prewarmed":
            # With its descriptors lost, it cannot be claimed; a new one is requested then.
            if error is None:
                self._on_prewarmed(message, fds)
            return None
        if message.get("request") != request_id:
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
        return message, Descriptors(fds), None

    def _discard(self, message: Message) -> None:
        """Have the launcher close the container of an answer that came too late.

        The launcher may have sent it before it read that the request was cancelled.
        """
        if message["op"] == "created":
            self._unsent.append({"op": "closed", "id": message["id"]})

    def _cancel(self, request_id: int) -> None:
        if not self.is_gone:
            with contextlib.suppress(LauncherGoneError):
                self.send({"op": "cancel", "request_id": request_id})

    def _gone(self, detail: str = "") -> LauncherGoneError:
        """Return the error for a closed socket, and note it.

        The launcher has ended, or is about to: the kernel closes the descriptors of a process
        before its pidfd reports the end.
        """
        self.is_gone = True
        return LauncherGoneError(
            "send a request to the launcher",
            f"the launcher has ended{detail}",
            "Start a new container: it gets a new launcher.",
        )
