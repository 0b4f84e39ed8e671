"""The way of a fork's news to its parent: a file in memory, one line of JSON for each, behind a word that only the two know.

The fork appends, and the parent reads when all is said, or the fork has ended: until then nobody is woken, and the parent touches nothing of the
memory that the two share, each page of which would have to be copied. What is written stays, however the fork ends: nobody can make the file shorter.

The fork runs foreign code, which may write what it likes on every descriptor that it finds, or end in the middle of a line: so the parent believes
a line only if it is whole and begins with the word, and takes no more than it can bear. News is data, never pickles.

========== ==================================================================================================
kind       data
========== ==================================================================================================
report     a phase's report as pytest's hooks serialise it, and the phase's exception as data
logged     a report that another plugin logged meanwhile (a subtest)
warning    a warning as data
debugger   true while a debugger waits for a person: time does not count then (this rings)
cache      key and value that the test gave to ``config.cache``
...        what :mod:`pytest_sandbox.plugin.carried` and :mod:`pytest_sandbox.plugin.coverage_data` carry
exit       the test ends the session (``pytest.exit``): reason and return code
done       nothing is missing; true where the layer has more files than before (this rings)
========== ==================================================================================================
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

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_sandbox.container import Child

__all__ = ["News", "Receiver", "Wire"]

#: The signal on which a fork writes its stack: the kernel's last real-time signal but one, which next to nobody uses.
STACK_SIGNAL = signal.SIGRTMAX - 1
_MOST = 256 << 20
_MOST_STACK = 1 << 20
_CHUNK = 1 << 18
_STACK_TIME = 2.0
_STACK_PAUSE = 0.1
_INTERRUPT_TIME = 5.0


class News(NamedTuple):
    """One line."""

    kind: str
    data: Any


class Wire:
    """Both ends, made before the fork: the file, and a pipe that wakes the parent, for faulthandler's stack and for what it has to read at once."""

    def __init__(self) -> None:
        self.word = secrets.token_hex(8).encode()
        self.file = os.memfd_create("news", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        fcntl.fcntl(self.file, fcntl.F_SETFL, os.O_APPEND)
        fcntl.fcntl(self.file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        self.stack_reader, self.stack_writer = os.pipe2(os.O_CLOEXEC)
        self._owner = 0

    def in_parent(self, child: Child) -> Receiver:
        """Keep the parent's ends."""
        os.close(self.stack_writer)
        return Receiver(self, child)

    def in_fork(self) -> None:
        """Keep the fork's ends."""
        os.close(self.stack_reader)
        self._owner = os.getpid()

    def send(self, kind: str, data: Any, *, ring: bool = False) -> None:
        """Append one line in the fork; a fork of the fork, which went on into pytest by accident, says nothing."""
        if os.getpid() != self._owner:
            return
        # The first line's end is that of what somebody else may have written without one.
        left = memoryview(b"\n%s %s\n" % (self.word, _dumps([kind, data])))
        while left:
            left = left[os.write(self.file, left) :]
        if ring:
            os.write(self.stack_writer, b"\n")

    def close(self) -> None:
        """Close the parent's ends."""
        os.close(self.file)
        os.close(self.stack_reader)


class Receiver:
    """The parent's end: ``news`` is what came, ``strange`` whether something else did, ``stack`` what faulthandler wrote."""

    def __init__(self, wire: Wire, child: Child) -> None:
        self._wire = wire
        self._child = child
        self._read = 0
        self.news: list[News] = []
        self.strange = False
        self.too_much = False
        self.stack = bytearray()
        self.debugging = False
        self._debugged = 0.0  # seconds; while a debugger waits, minus the time when it began to
        self.interrupted = False

    def receive(self, timeout: float | None) -> bool:
        """Wait until all is said or the fork has ended; False where the time is over before, not counting a debugger's.

        A Ctrl-C goes on to the fork, which is out of the terminal's reach; it gets some seconds to end by itself, and none after a second one.
        """
        poll = select.poll()
        for fd in (self._child.pidfd, self._wire.stack_reader):
            poll.register(fd, select.POLLIN)
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                left = None if end is None or self.debugging else max(0.0, end + self._debugged - time.monotonic())
                ready = {fd for fd, _event in poll.poll(process.milliseconds(left))}
                if self._wire.stack_reader in ready:
                    self._take_stack(poll)
                self._take()
                if self.is_done or self._child.pidfd in ready:
                    return True
                if left == 0 and not self.debugging:
                    return False
            except KeyboardInterrupt:
                if self.interrupted:
                    return False
                self.interrupted = True
                process.kill(self._child.pidfd, signal.SIGINT)
                end = time.monotonic() + _INTERRUPT_TIME

    def _take_stack(self, poll: select.poll) -> None:
        part = os.read(self._wire.stack_reader, _CHUNK)
        if len(self.stack) < _MOST_STACK:
            self.stack += part
        if not part:
            poll.unregister(self._wire.stack_reader)

    def _take(self) -> None:
        """Read the whole lines that have come."""
        size = os.fstat(self._wire.file).st_size
        self.too_much = size > _MOST
        while not self.too_much and self._read < size:
            part = os.pread(self._wire.file, size - self._read, self._read)
            whole = part.rfind(b"\n") + 1
            for line in part[:whole].split(b"\n"):
                self._hear(line)
            self._read += whole
            if not whole:
                self.strange = True
                return

    def _hear(self, line: bytes) -> None:
        if not line:
            return
        word, _, text = line.partition(b" ")
        if word != self._wire.word:
            self.strange = True
            return
        news = News(*json.loads(text))
        if news.kind == "debugger" and self.debugging != bool(news.data):
            self.debugging = not self.debugging
            self._debugged += -time.monotonic() if self.debugging else time.monotonic()
        self.news.append(news)

    def ask_for_stack(self) -> None:
        """Have the fork write its stack, and wait until it has; a fork that cannot is waited for a moment only."""
        process.kill(self._child.pidfd, STACK_SIGNAL)
        poll = select.poll()
        poll.register(self._wire.stack_reader, select.POLLIN)
        end = time.monotonic() + _STACK_TIME
        pause = _STACK_TIME
        while time.monotonic() < end and poll.poll(process.milliseconds(pause)):
            part = os.read(self._wire.stack_reader, _CHUNK)
            self.stack += part
            pause = _STACK_PAUSE
            if not part:
                return

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


def _dumps(value: Any) -> bytes:
    """Write JSON; what it cannot hold becomes its repr."""
    try:
        return _JSON.encode(value).encode()
    except (TypeError, ValueError, RecursionError):  # keys that are no text, a circle
        return json.dumps(_plain(value, 0)).encode()


def _plain(value: Any, depth: int) -> Any:
    if depth < 100:
        if isinstance(value, dict):
            return {key if isinstance(key, str) else safe_repr(key): _plain(one, depth + 1) for key, one in value.items()}
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


_JSON = json.JSONEncoder(default=safe_repr)
