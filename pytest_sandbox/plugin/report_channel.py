"""The way of a fork's news to its parent: a file in memory, one line of JSON for each, behind a
word that only the two know.

The fork appends, and the parent reads when all is said, or the fork has ended: until then nobody is
woken, and the parent touches nothing of the memory that the two share, each page of which would
have to be copied. What is written stays, however the fork ends: nobody can make the file shorter.

The fork runs foreign code, which may write what it likes on every descriptor that it finds, or end
in the middle of a line: so the parent believes a line only if it is whole and begins with the word,
and takes no more than it can bear. News is data, never pickles; what each kind may hold stands in
:mod:`pytest_sandbox.plugin.messages`.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import select
import signal
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_sandbox.linux import process
from pytest_sandbox.plugin import messages
from pytest_sandbox.plugin.schema import InvalidError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_sandbox.container.fork import Child
    from pytest_sandbox.plugin.inherited_files import Outputs
    from pytest_sandbox.plugin.messages import Checker

__all__ = ["News", "Receiver", "Wire", "dumps"]

#: The signal on which a fork writes its stack: the kernel's last real-time signal but one, which
#: next to nobody uses.
STACK_SIGNAL = signal.SIGRTMAX - 1
#: Bytes that may come before the test is ended, whoever wrote them.
_MOST = 64 << 20
_MOST_STACK = 1 << 20
_CHUNK = 1 << 18
_STACK_TIME = 1.0
_STACK_PAUSE = 0.1
_INTERRUPT_TIME = 5.0


class News(NamedTuple):
    """One line."""

    kind: str
    data: Any


class Wire:
    """Both ends, made before the fork: the file, and a pipe that wakes the parent, for
    faulthandler's stack and for what it has to read at once.
    """

    def __init__(self) -> None:
        self.word = secrets.token_hex(8).encode()
        self.file = os.memfd_create("news", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        fcntl.fcntl(self.file, fcntl.F_SETFL, os.O_APPEND)
        fcntl.fcntl(self.file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        self.stack_reader, self.stack_writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.stack_reader, False)  # the fork can take back what it has written
        self._owner = 0

    def in_parent(
        self, child: Child, checker: Checker, outputs: Outputs, *, may_debug: bool = False
    ) -> Receiver:
        """Keep the parent's ends."""
        os.close(self.stack_writer)
        return Receiver(self, child, checker, outputs, may_debug=may_debug)

    def discard(self) -> None:
        """Close all ends, where there was no fork."""
        os.close(self.stack_writer)
        self.close()

    def in_fork(self) -> None:
        """Keep the fork's ends."""
        os.close(self.stack_reader)
        self._owner = os.getpid()

    def send(self, kind: str, data: Any, *, ring: bool = False) -> None:
        """Append one line in the fork; a fork of the fork, which went on into pytest by accident,
        says nothing.
        """
        if os.getpid() != self._owner:
            return
        # The first line's end is that of what somebody else may have written without one.
        left = memoryview(b"\n%s %s\n" % (self.word, dumps([kind, data])))
        while left:
            left = left[os.write(self.file, left) :]
        if ring:
            os.write(self.stack_writer, b"\n")

    def close(self) -> None:
        """Close the parent's ends."""
        os.close(self.file)
        os.close(self.stack_reader)


class Receiver:
    """The parent's end: ``news`` is what came, ``strange`` whether something else did, ``stack``
    what faulthandler wrote.

    ``invalid`` says what is wrong with the first message that is not as its schema wants it; none
    is read after it. ``may_debug`` says that a message may stop the clock.
    """

    def __init__(
        self,
        wire: Wire,
        child: Child,
        checker: Checker,
        outputs: Outputs,
        *,
        may_debug: bool = False,
    ) -> None:
        self._wire = wire
        self._child = child
        self._checker = checker
        self._outputs = outputs
        self._may_debug = may_debug
        self._read = 0
        self._rest = bytearray()
        self.news: list[News] = []
        self.strange = False
        self.invalid = ""
        self.stack = bytearray()
        self.debugging = False
        self._debugged = 0.0  # seconds; while a debugger waits, minus the time when it began to
        self.interrupted = False

    def receive(self, timeout: float | None) -> bool:
        """Wait until all is said, the fork has ended or a message is invalid; False where the time
        is over before.

        The time while a debugger waits does not count. A Ctrl-C goes on to the fork, which is out
        of the terminal's reach; it gets some seconds to end by itself, and none after a second one.
        """
        poll = select.poll()
        for fd in (self._child.pidfd, self._wire.stack_reader, *self._outputs.readers):
            poll.register(fd, select.POLLIN)
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                left = self._left(end)
                ready = {fd for fd, _event in poll.poll(process.milliseconds(left))}
                if self._wire.stack_reader in ready:
                    self._take_stack(poll)
                for reader in ready & self._outputs.readers.keys():
                    if not self._outputs.copy(reader):
                        poll.unregister(reader)
                self._take()
                if self.is_done or self.invalid or self._child.pidfd in ready:
                    return True
                if left == 0 and not self.debugging:
                    return False
            except KeyboardInterrupt:
                if self.interrupted:
                    return False
                self.interrupted = True
                process.kill(self._child.pidfd, signal.SIGINT)
                end = time.monotonic() + _INTERRUPT_TIME

    def _left(self, end: float | None) -> float | None:
        """Return the seconds until ``end``; None where there is no end, or a debugger waits."""
        if end is None or self.debugging:
            return None
        return max(0.0, end + self._debugged - time.monotonic())

    def _take_stack(self, poll: select.poll) -> None:
        part = self._read_stack()
        if part == b"":
            poll.unregister(self._wire.stack_reader)

    def _take(self) -> None:
        """Read the whole lines that have come, a page at a time."""
        while not self.invalid:
            part = os.pread(self._wire.file, _CHUNK, self._read)
            if not part:
                self.strange = self.strange or bool(self._rest)
                return
            self._read += len(part)
            if self._read > _MOST:
                self.invalid = f"it wrote more than {_MOST >> 20} MiB where its reports travel"
                return
            self._take_lines(part)

    def _take_lines(self, part: bytes) -> None:
        *lines, rest = part.split(b"\n")
        if lines:
            lines[0] = bytes(self._rest) + lines[0]
            self._rest.clear()
        for line in lines:
            self._hear(line)
        room = messages.LONGEST + len(self._wire.word) + 2 - len(self._rest)
        self._rest += rest[:room]  # one byte more than the longest message says that it is too long

    def _hear(self, line: bytes) -> None:
        if not line or self.invalid:
            return
        word, _, text = line.partition(b" ")
        if word != self._wire.word:
            self.strange = True
            return
        try:
            news = News(*self._checker.read(text))
        except InvalidError as error:
            self.invalid = str(error)
            return
        if news.kind == "debugger":
            self._hear_debugger(is_on=news.data)
            return
        self.news.append(news)

    def _hear_debugger(self, *, is_on: bool) -> None:
        if self._may_debug and self.debugging != is_on:
            self.debugging = is_on
            self._debugged += -time.monotonic() if is_on else time.monotonic()

    def ask_for_stack(self) -> None:
        """Have the fork write its stack, and wait until it has; a fork that cannot is waited for a
        moment only.
        """
        process.kill(self._child.pidfd, STACK_SIGNAL)
        poll = select.poll()
        poll.register(self._wire.stack_reader, select.POLLIN)
        end = time.monotonic() + _STACK_TIME
        pause = _STACK_TIME
        while (
            time.monotonic() < end
            and len(self.stack) < _MOST_STACK
            and poll.poll(process.milliseconds(pause))
        ):
            pause = _STACK_PAUSE
            if self._read_stack() == b"":
                return

    def _read_stack(self) -> bytes | None:
        """Take a part of the stack, b"" at its end; None where somebody else has taken it."""
        try:
            part = os.read(self._wire.stack_reader, _CHUNK)
        except BlockingIOError:
            return None
        self.stack += part[: _MOST_STACK - len(self.stack)]
        return part

    @property
    def is_done(self) -> bool:
        """Whether the fork has said that nothing is missing; all that it still does is to end."""
        return bool(self.news) and self.news[-1].kind == "done"

    @property
    def has_written(self) -> bool:
        """Whether the fork may have made files: it has said so, or it ended without a word."""
        return not self.is_done or bool(self.news[-1].data)

    def of(self, kind: str) -> Iterator[Any]:
        """Yield the data of all news of a kind."""
        return (news.data for news in self.news if news.kind == kind)

    def forget(self) -> None:
        """Do nothing of what the fork asked for: one of its messages is invalid."""
        self.news = [news for news in self.news if news.kind == "report"]


def dumps(value: Any) -> bytes:
    """Write JSON; what it cannot hold becomes its repr."""
    try:
        return _JSON.encode(value).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, RecursionError):  # keys that are no text, a circle
        return _JSON.encode(_plain(value, 0)).encode("utf-8", "surrogatepass")


def _plain(value: Any, depth: int) -> Any:
    if depth < _DEEPEST:
        if isinstance(value, dict):
            return {
                key if isinstance(key, str) else safe_repr(key): _plain(one, depth + 1)
                for key, one in value.items()
            }
        if isinstance(value, list | tuple):
            return [_plain(one, depth + 1) for one in value]
        if value is None or type(value) in {str, int, float, bool}:
            return value
    return safe_repr(value)


def safe_repr(value: object) -> str:
    """Return ``repr(value)``, or the name of its class where that raises."""
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a test's object
        return f"<{type(value).__qualname__}>"


_JSON = json.JSONEncoder(default=safe_repr, ensure_ascii=False)
_DEEPEST = 80
