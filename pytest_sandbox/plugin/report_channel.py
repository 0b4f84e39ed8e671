"""The report channel: a memory file to which a test process appends messages for its parent.

Each message is one line: a nonce that only the two processes know, then JSON. The test process
writes through :class:`ReportChannel`; the parent reads through :class:`Receiver` when the test
process has sent its last message, or has ended. Until then the parent is not woken, and touches no
memory that the two share: each page that it wrote to would be copied.

- The file cannot be truncated (F_SEAL_SHRINK, fcntl(2)), and everything is written at its end
  (O_APPEND), so a message persists however the test process ends.
- The test process runs untrusted code, which may write to any descriptor it finds, or end in the
  middle of a line. The parent accepts only complete lines that start with the nonce, and reads a
  bounded amount.
- Messages are data, never pickles. message_checker.py checks each one.
- The test may have replaced functions of the standard library, or set RLIMIT_FSIZE: what is called
  after it is bound before it (``_getpid``, ``_write``), and what the file does not take goes
  through the pipe that wakes the parent.

protocol.py creates the channel before the fork.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import secrets
import select
import signal
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_sandbox.linux import process
from pytest_sandbox.plugin.lenient_json import dumps
from pytest_sandbox.plugin.messages import MAX_MESSAGE_BYTES
from pytest_sandbox.plugin.schema import InvalidError
from pytest_sandbox.plugin.test_words import TestWords

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from pytest_sandbox.container.fork import Child
    from pytest_sandbox.plugin.inherited_files import InheritedFiles
    from pytest_sandbox.plugin.message_checker import MessageChecker
    from pytest_sandbox.plugin.originals import Originals

__all__ = [
    "GRACE",
    "STACK_SIGNAL",
    "Message",
    "Receiver",
    "ReportChannel",
    "wait_for_any",
]

#: The signal that makes a test process write its stack: the last real-time signal but one, which
#: programs hardly ever use (signal(7)).
STACK_SIGNAL = signal.SIGRTMAX - 1
#: The size of the file at which the test is ended.
_MAX_BYTES = 64 << 20
_TOO_MUCH = f"more than {_MAX_BYTES >> 20} MiB are in the report channel"
_MAX_STACK_BYTES = 1 << 20
_CHUNK = 1 << 18
#: More than a pipe can hold (pipe(7), /proc/sys/fs/pipe-max-size).
_MOST_CHUNKS = 8
#: Seconds: for the whole stack, and after each part of it.
_STACK_TIMEOUT = 1.0
_STACK_PART_TIMEOUT = 0.1
#: Seconds that a test process may take to end after Ctrl-C.
_INTERRUPT_TIMEOUT = 5.0
#: Seconds that a test process may take longer than pytest-timeout allows: that plugin's own report
#: shows where the test was.
GRACE = 1.0
_getpid, _write = os.getpid, os.write


def _now() -> float:
    """Return seconds; unlike :func:`time.monotonic`, older versions of time-machine leave this
    clock alone.
    """
    return time.clock_gettime(time.CLOCK_MONOTONIC)


class Message(NamedTuple):
    """One message: its kind, and data as messages.py describes it."""

    kind: str
    data: Any


class ReportChannel:
    """Both ends, created before the fork.

    ``file`` holds the messages. A pipe wakes the parent: for messages that it must read at once,
    for those that the file does not take, and for the stack that faulthandler writes.
    """

    def __init__(self, *, is_shared: bool = False) -> None:
        """``is_shared``: the child runs several tests, and the parent names each."""
        self.nonce = secrets.token_hex(8).encode()
        self.file = os.memfd_create("reports", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        fcntl.fcntl(self.file, fcntl.F_SETFL, os.O_APPEND)
        fcntl.fcntl(self.file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        self.wake_reader, self.wake_writer = os.pipe2(os.O_CLOEXEC)
        # The test process can open the pipe's other end and read back what it has written.
        os.set_blocking(self.wake_reader, False)
        #: The parent names the next test by these.
        self.words = TestWords.create() if is_shared else None
        self._sender = 0
        #: How much of the file the parent has read.
        self.offset = self._freed = 0

    def child_ends(self) -> dict[str, int | None]:
        """Return the descriptors of the child's ends, as fresh_plugin.py expects them."""
        word = None if self.words is None else self.words.reader
        return {"file": self.file, "wake": self.wake_writer, "word": word}

    def in_parent(self) -> None:
        """Close the child's ends."""
        os.close(self.wake_writer)
        if self.words is not None:
            self.words.close_reader()

    def in_child(self) -> None:
        """Close the parent's ends."""
        os.close(self.wake_reader)
        if self.words is not None:
            self.words.close_writer()
        self._sender = _getpid()

    def free_read(self) -> None:
        """Free the memory of whole MiB that were read: it counts as the container's."""
        size = (self.offset - self._freed) >> 20 << 20
        if size:
            with mmap.mmap(self.file, size, offset=self._freed) as mapped:
                mapped.madvise(mmap.MADV_REMOVE)
            self._freed += size

    def next_word(self) -> int | None:
        """Wait in the child for the index of the next test; None if there is none."""
        return None if self.words is None else self.words.receive()

    def send(self, kind: str, data: Any, *, wake: bool = False) -> None:
        """Append a message in the child; ``wake`` has the parent read it at once.

        Does nothing in a process that the test itself forked and that returned into pytest.
        """
        if _getpid() != self._sender:
            return
        # The first line feed ends what other code may have written without one.
        line = b"\n%s %s\n" % (self.nonce, dumps([kind, data]))
        try:
            _write_all(self.file, line)
        except OSError as error:
            if error.errno != errno.EFBIG:  # RLIMIT_FSIZE (setrlimit(2)) does not concern pipes
                raise
            _write_all(self.wake_writer, line)
        if wake:
            _write(self.wake_writer, b"\n")

    def close(self) -> None:
        """Close the parent's end."""
        os.close(self.file)
        os.close(self.wake_reader)
        if self.words is not None:
            self.words.close_writer()

    def close_both_ends(self) -> None:
        """Close both ends, when the fork has failed."""
        self.in_parent()
        self.close()


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[_write(fd, data) :]


class Receiver:
    """The parent's end during one test.

    - ``messages``: those that have passed their check.
    - ``invalid``: what is wrong with the first message that has not; nothing is read after it.
    - ``has_foreign_data``: whether the file contains anything but messages.
    - ``stack``: what faulthandler wrote.
    - ``interrupted``, ``is_debugging``: whether Ctrl-C came, and a debugger waits for input.

    With ``may_debug``, a message can suspend the timeout while a debugger waits for input.
    """

    def __init__(
        self,
        channel: ReportChannel,
        child: Child,
        checker: MessageChecker,
        files: InheritedFiles,
        *,
        may_debug: bool,
    ) -> None:
        self._channel = channel
        self._child = child
        self._checker = checker
        self._files = files
        self._may_debug = may_debug
        self._file_bytes = 0
        self._partial_line = bytearray()
        self.messages: list[Message] = []
        self.has_foreign_data = False
        self.invalid = ""
        self.stack = bytearray()
        self._piped = b""  # the last line in the pipe, which has not ended
        self._piped_bytes = 0
        self.interrupted = False
        self.is_debugging = False
        # Seconds that debuggers have waited; while one waits, minus the time at which it started.
        self._debugging_time = 0.0
        self._end: float | None = None
        self._begin = _now()
        #: The seconds after which the test was named as a slow one (slow_tests.py).
        self.named_after = 0.0
        self.limit_seconds = 0.0
        #: What to poll: the child, the pipe, and the pipes of inherited files that have not ended.
        self.descriptors = {child.pidfd, channel.wake_reader, *files.readers}
        self.is_over = self.timed_out = False

    def limit(self, seconds: float) -> None:
        """End the wait in ``seconds`` from now, unless it ends earlier.

        The time during which a debugger waits does not count.
        """
        end = _now() + seconds
        if self._end is None or end < self._end:
            self._end, self.limit_seconds = end, seconds

    def age(self) -> float:
        """Return the seconds since the start of the test process."""
        return _now() - self._begin

    def interrupt(self) -> None:
        """Pass Ctrl-C on to the child, which the terminal's signal does not reach: it is in a
        session of its own. It gets some seconds to end; a second Ctrl-C ends the wait.
        """
        if self.interrupted:
            self.is_over = self.timed_out = True
            return
        self.interrupted = True
        process.kill(self._child.pidfd, signal.SIGINT)
        self._end = _now() + _INTERRUPT_TIMEOUT

    def advance(self, ready: Collection[int]) -> None:
        """Read what has come; ``ready`` are descriptors that poll(2) has reported, also of others.

        ``is_over`` is set after the last message, the child's end, an invalid message, or, with
        ``timed_out``, the time limit.
        """
        left = self.time_left()
        # poll(2) looks at one descriptor after the other: a child that has ended may have written
        # to the pipe in between.
        has_ended = self._child.pidfd in ready
        if self._channel.wake_reader in ready or has_ended:
            self._read_pipe()
        for reader in self._files.readers.keys() & ready:
            if not self._files.copy(reader):
                self.descriptors.discard(reader)
        self._read_messages()
        if self.is_done or self.invalid or has_ended:
            self.is_over = True
        elif left == 0 and not self.is_debugging:
            self.is_over = self.timed_out = True

    def _read_pipe(self) -> None:
        for _ in range(_MOST_CHUNKS):
            part = self._read_stack()
            if part == b"":
                self.descriptors.discard(self._channel.wake_reader)
            if not part:
                return

    def time_left(self) -> float | None:
        """Return the seconds until the limit; None if there is none, or a debugger waits."""
        if self._end is None or self.is_debugging:
            return None
        return max(0.0, self._end + self._debugging_time - _now())

    def _read_messages(self) -> None:
        while not self.invalid:
            part = os.pread(self._channel.file, _CHUNK, self._channel.offset)
            if not part:
                self.has_foreign_data = self.has_foreign_data or bool(self._partial_line)
                return
            self._channel.offset += len(part)
            self._file_bytes += len(part)
            if self._file_bytes > _MAX_BYTES:
                self.invalid = _TOO_MUCH
                return
            self._read_lines(part)

    def _read_lines(self, part: bytes) -> None:
        *lines, rest = part.split(b"\n")
        if lines:
            lines[0] = bytes(self._partial_line) + lines[0]
            self._partial_line.clear()
        for line in lines:
            self._read_line(line)
        # One byte more than the longest line is enough to reject it.
        room = MAX_MESSAGE_BYTES + len(self._channel.nonce) + 2 - len(self._partial_line)
        self._partial_line += rest[:room]

    def _read_line(self, line: bytes) -> None:
        if not line or self.invalid:
            return
        nonce, _, text = line.partition(b" ")
        if nonce != self._channel.nonce:
            self.has_foreign_data = True
            return
        try:
            message = Message(*self._checker.read(text))
        except InvalidError as error:
            self.invalid = str(error)
            return
        if message.kind == "debugger":
            self._set_debugging(is_on=message.data)
        elif message.kind == "timeout":
            self.limit(message.data + GRACE)
        else:
            self.messages.append(message)

    def _set_debugging(self, *, is_on: bool) -> None:
        if self._may_debug and self.is_debugging != is_on:
            self.is_debugging = is_on
            self._debugging_time += -_now() if is_on else _now()

    def request_stack(self) -> None:
        """Have the child write its stack, and read it; give up after a second."""
        process.kill(self._child.pidfd, STACK_SIGNAL)
        poll = select.poll()
        poll.register(self._channel.wake_reader, select.POLLIN)
        end = _now() + _STACK_TIMEOUT
        timeout = _STACK_TIMEOUT
        while (
            _now() < end
            and len(self.stack) < _MAX_STACK_BYTES
            and poll.poll(process.milliseconds(timeout))
        ):
            timeout = _STACK_PART_TIMEOUT
            if self._read_stack() == b"":
                return

    def take_stack(self) -> bytes:
        """Have the child write its stack, and return it."""
        self.request_stack()
        stack = bytes(self.stack)
        self.stack.clear()
        return stack

    def _read_stack(self) -> bytes | None:
        """Read a part of the stack, or of messages; return b"" at the pipe's end, None if nothing
        is there.
        """
        try:
            part = os.read(self._channel.wake_reader, _CHUNK)
        except BlockingIOError:
            return None
        *lines, self._piped = (self._piped + part).split(b"\n")
        if not part or len(self._piped) > MAX_MESSAGE_BYTES:
            lines.append(self._piped)
            self._piped = b""
        for line in lines:
            if line.startswith(self._channel.nonce):
                self._read_piped(line)
            else:
                self.stack += (line + b"\n")[: _MAX_STACK_BYTES - len(self.stack)]
        return part

    def _read_piped(self, line: bytes) -> None:
        self._read_messages()  # those that the file has taken came before
        self._piped_bytes += len(line)
        if self._piped_bytes > _MAX_BYTES:
            self.invalid = self.invalid or _TOO_MUCH
        self._read_line(line)

    @property
    def size(self) -> int:
        """The bytes that the child has written."""
        return self._file_bytes + self._piped_bytes

    @property
    def is_done(self) -> bool:
        """Whether the last message has come."""
        return bool(self.messages) and self.messages[-1].kind == "done"

    @property
    def may_have_created_files(self) -> bool:
        """Whether files were created in the container; True too if the child ended early."""
        return not self.is_done or bool(self.messages[-1].data[0])

    @property
    def is_waiting(self) -> bool:
        """Whether the child waits for the next test."""
        return self.is_done and not self.invalid and bool(self.messages[-1].data[1])

    @property
    def passed_phases(self) -> tuple[bool, bool]:
        """Whether the setup phase has not failed, and whether none has."""
        outcomes = [data["report"]["outcome"] for data in self.of_kind("report")]
        return outcomes[:1] not in ([], ["failed"]), self.is_done and "failed" not in outcomes

    def of_kind(self, kind: str) -> Iterator[Any]:
        """Yield the data of all messages of a kind."""
        return (message.data for message in self.messages if message.kind == kind)

    def drop_all_but_reports(self) -> None:
        """Remove the messages that have an effect on the session: an invalid one was among them."""
        self.messages = [message for message in self.messages if message.kind == "report"]


def wait_for_any(
    receivers: Sequence[Receiver], originals: Originals, at_most: float | None
) -> None:
    """Wait until something has come for one of the receivers, or its time is over, and read it;
    wait ``at_most`` some seconds, None for no limit.

    Replaced functions stay replaced meanwhile, for the threads of the suite.
    """
    poll = select.poll()
    for fd in {fd for receiver in receivers for fd in receiver.descriptors}:
        poll.register(fd, select.POLLIN)
    left = [one.time_left() for one in receivers]
    events = originals.outside(poll.poll, process.milliseconds(_least([*left, at_most])))
    ready = {fd for fd, _event in events}
    for receiver in receivers:
        receiver.advance(ready)


def _least(seconds: Sequence[float | None]) -> float | None:
    return min((one for one in seconds if one is not None), default=None)
