"""The loop of a relay's process (relays.py): the client's messages, and a handler for each
descriptor.
"""

from __future__ import annotations

import resource
import select
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.linux import process
from pytest_sandbox.runtime.protocol import close_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.runtime.protocol import Channel, Message

__all__ = ["EventLoop", "allow_most_descriptors"]


def allow_most_descriptors() -> int:
    """Raise the limit of open descriptors to the hard limit; return it."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class EventLoop:
    """A message of the client is handled by the method ``_do_OP``, which owns its descriptors.

    It may return fields of the answer, and put descriptors for it into ``answer_fds``. A message
    with ``quiet`` gets no answer.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        #: They are closed once the answer is sent.
        self.answer_fds: list[int] = []

    def serve(self) -> None:
        """Handle events until the client has closed its end."""
        self.watch(self._channel.fileno(), select.EPOLLIN, lambda _events: None)
        while True:
            for fd, events in self._wait():
                if fd == self._channel.fileno():
                    if not self._receive():
                        return
                elif handler := self._handlers.get(fd):
                    handler(events)

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Call ``handler`` for these events of epoll(7); for none, forget the descriptor."""
        if not events:
            if self._handlers.pop(fd, None) is not None:
                self._poll.unregister(fd)
        elif fd in self._handlers:
            self._poll.modify(fd, events)
        else:
            self._poll.register(fd, events)
            self._handlers[fd] = handler

    def _wait(self) -> list[tuple[int, int]]:
        return self._poll.poll()

    def _receive(self) -> bool:
        """Handle a message of the client; return False once it has closed its end."""
        try:
            message, fds = self._channel.receive()
        except EOFError:
            return False
        answer: Message = {"op": "ready"}
        try:
            answer |= getattr(self, f"_do_{message['op']}")(message, fds) or {}
        except OSError as error:
            answer = {"op": "failed", "errno": error.errno, "reason": error.strerror}
            self._close_answer_fds()
        if not message.get("quiet"):
            with suppress(BrokenPipeError, ConnectionResetError):
                self._channel.send(answer, self.answer_fds)
        self._close_answer_fds()
        return True

    def catch_up(self) -> None:
        """Handle the messages of the client that have arrived."""
        while process.is_readable(self._channel.fileno(), 0):
            if not self._receive():
                return  # serve() finds the end, too

    def _close_answer_fds(self) -> None:
        fds, self.answer_fds = self.answer_fds, []
        close_all(fds)
