"""Lists of system calls that a few machine instructions (tools/machine_code) make in a child.

Building a container, or putting a process into it, takes 40 to 90 system calls. From Python they
would need a fork of the interpreter, whose pages are then copied one fault at a time: 5 ms of CPU.
A list of calls runs in a child that shares its parent's memory (clone3(2) with CLONE_VM and
CLONE_VFORK, as in posix_spawn(3)), so nothing is copied, whatever the size of the process. The
result of each call is in the list when the parent continues, so that an error message can name the
step that failed, with its arguments.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from pytest_sandbox.linux import machine_code, native_code, process, seccomp
from pytest_sandbox.linux import syscall as sc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["RECORD_SIZE", "Failure", "Record", "Result", "SyscallBatch", "Table", "number"]

# The format of a record, in words of 8 bytes: the number of the call, 6 arguments, the mode and the
# result. The same numbers are in tools/machine_code.
_SIZE, _FIRST, _THIRD, _MODE, _RESULT = 9, 1, 3, 7, 8
# Bits of the mode.
_GO_ON, _STOP_IF_POSITIVE, _FIRST_IS_RESULT, _THIRD_IS_RESULT = 1, 2, 4, 8
_NOT_CALLED = 1 << 63  # a result that no call returns
_END = (1 << 64) - 1
#: The size of a record in bytes.
RECORD_SIZE = 8 * _SIZE
_INDEX_SHIFT = 16  # in an image, the upper bits of the mode are the index of the record
_WORD = (1 << 64) - 1
_EXIT_TIMEOUT = 2.0  # seconds for a child to exit after its last call
_IGNORED_SIGCHLD = struct.pack("QQQQ", signal.SIG_IGN, 0, 0, 0)  # the kernel's struct sigaction


@dataclass(frozen=True, slots=True)
class Result:
    """The future result of a call, to be the first or third argument of a later call."""

    index: int


@dataclass(frozen=True, slots=True)
class Record:
    """The address of a call's record, which a later call writes to a pipe."""

    index: int


class Table(tuple[int | bytes, ...]):
    """An argument that points to an array of words: integers, or addresses of strings."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that failed: its step, errno and text, and whether it was allowed to fail."""

    step: str
    errno: int
    call: str
    is_allowed: bool = False

    def error(self) -> OSError:
        """Return an exception whose text has the call and its arguments."""
        return OSError(self.errno, f"{os.strerror(self.errno)}: {self.call}")


@cache
def _numbers() -> dict[str, int]:
    table = seccomp.MACHINES[_machine()][0].table
    return {name: number for number, name in seccomp.numbers(table).items()}


def _machine() -> str:
    machine = os.uname().machine
    if machine not in machine_code.RUN:
        supported = ", ".join(machine_code.RUN)
        raise OSError(
            errno.ENOSYS, f"containers need one of {supported}; this machine is {machine}"
        )
    return machine


def number(call: str) -> int:
    """Return the number of a system call on this machine."""
    return _numbers()[call]


@cache
def _code() -> Callable[[int, int], int]:
    return native_code.map_code(machine_code.RUN[_machine()])


class SyscallBatch:
    """A list of system calls, to be run once; ``batch[result]`` returns a result afterwards."""

    def __init__(self) -> None:
        self._words: list[int] = []
        self._tables: list[tuple[int, Table]] = []
        self._text = bytearray()
        self._texts: list[tuple[int, int]] = []  # (word, offset of its string in _text)
        self._links: list[tuple[int, int]] = []  # (word, the word to whose address it is set)
        self._calls: list[tuple[str, str, tuple[object, ...]]] = []
        self._opened: list[int] = []
        self._mask_at = _append(self._text, bytes(8))
        self._buffer = bytearray()
        self._prepared = 0  # the address of the buffer
        self._mask = 0  # the address of the mask that restore_signals sets

    def add(
        self,
        step: str,
        call: str,
        *arguments: int | bytes | Result | Record | Table | None,
        go_on: bool = False,
        stop_if_positive: bool = False,
    ) -> Result:
        """Append a call that belongs to ``step``, the name in error messages.

        Strings are terminated by a null byte; None is a null pointer. An error ends the batch
        unless ``go_on``; a positive result ends it if ``stop_if_positive``.
        """
        start = len(self._words)
        mode = _GO_ON * go_on | _STOP_IF_POSITIVE * stop_if_positive
        self._words += [number(call), 0, 0, 0, 0, 0, 0, mode, _NOT_CALLED]
        for place, argument in enumerate(arguments, start + _FIRST):
            if type(argument) is int:
                self._words[place] = argument & _WORD
            elif argument is not None:
                self._place(start, place, argument)
        self._calls.append((step, call, arguments))
        return Result(start // _SIZE)

    def _place(
        self, start: int, place: int, argument: int | bytes | Result | Record | Table
    ) -> None:
        if isinstance(argument, bytes):
            self._texts.append((place, _append(self._text, argument)))
        elif isinstance(argument, Result):
            self._words[start + _MODE] |= {_FIRST: _FIRST_IS_RESULT, _THIRD: _THIRD_IS_RESULT}[
                place - start
            ]
            self._links.append((place, argument.index * _SIZE + _RESULT))
        elif isinstance(argument, Record):
            self._links.append((place, argument.index * _SIZE))
        elif isinstance(argument, Table):
            self._tables.append((place, argument))
        else:
            self._words[place] = int(argument) & _WORD

    def extend(self, other: SyscallBatch) -> None:
        """Append the calls of another batch, whose results are not available in this one.

        A batch can be appended to several others.
        """
        words, text = len(self._words), len(self._text)
        self._words += other._words
        self._text += other._text
        self._texts += [(place + words, at + text) for place, at in other._texts]
        self._links += [(place + words, target + words) for place, target in other._links]
        self._tables += [(place + words, table) for place, table in other._tables]
        self._calls += other._calls

    # Calls of many batches.

    def open(
        self, step: str, path: bytes, flags: int, *, mode: int = 0, go_on: bool = False
    ) -> Result:
        """Append openat(2); :meth:`close_leaks` closes the descriptor if the batch fails."""
        result = self.add(step, "openat", -100, path, flags | os.O_CLOEXEC, mode, go_on=go_on)
        self._opened.append(result.index)
        return result

    def open_socket(self, step: str, family: int, kind: int, protocol: int) -> Result:
        """Append socket(2)."""
        result = self.add(step, "socket", family, kind, protocol)
        self._opened.append(result.index)
        return result

    def open_as(self, step: str, path: bytes, how: bytes) -> Result:
        """Append openat2(2); ``how`` is a :func:`~pytest_sandbox.linux.syscall.open_how`."""
        result = self.add(step, "openat2", -100, path, how, len(how))
        self._opened.append(result.index)
        return result

    def open_mount(self, step: str, path: bytes) -> Result:
        """Append open_tree(2), which opens a detached copy of a mount."""
        result = self.add(step, "open_tree", -100, path, sc.OPEN_TREE_CLONE | sc.OPEN_TREE_CLOEXEC)
        self._opened.append(result.index)
        return result

    def close(self, step: str, fd: Result) -> None:
        """Append closing a descriptor."""
        self.add(step, "close", fd, go_on=True)
        if fd.index in self._opened:
            self._opened.remove(fd.index)

    def write(self, step: str, path: bytes, data: bytes, *, go_on: bool = False) -> None:
        """Append writing ``data`` to a kernel file in a single system call."""
        fd = self.open(step, path, os.O_WRONLY, go_on=go_on)
        self.add(step, "write", fd, data, len(data), go_on=go_on)
        self.close(step, fd)

    def mount(
        self,
        step: str,
        source: bytes | None,
        target: bytes,
        fstype: bytes | None,
        flags: int,
        data: bytes | None = None,
    ) -> Result:
        """Append mounting a file system."""
        return self.add(step, "mount", source, target, fstype, flags, data)

    def restore_signals(self, step: str, numbers: Iterable[int] = ()) -> None:
        """Append resetting the signals ``numbers`` to their default actions, and the signal mask.

        The mask is the one that the thread had before :meth:`spawn` or :meth:`block_signals`.
        """
        for signum in numbers:
            self.add(step, "rt_sigaction", signum, bytes(32), None, 8)
        at = len(self._words) + _FIRST + 1
        self.add(step, "rt_sigprocmask", int(signal.SIG_SETMASK), None, None, 8)
        self._texts.append((at, self._mask_at))

    def ignore_sigchld(self, step: str) -> None:
        """Append ignoring SIGCHLD: the kernel reaps children then, also after execve(2)."""
        self.add(step, "rt_sigaction", signal.SIGCHLD, _IGNORED_SIGCHLD, None, 8)

    # Running.

    def prepare(self) -> None:
        """Lay out the batch before a fork.

        Then :meth:`run` creates no objects in the child, where each page that it writes to has to
        be copied first.
        """
        self._prepared = self._assemble()
        self._run = _code()
        self._last = Result(len(self._calls) - 1)

    def run(self) -> None:
        """Make the calls in this thread; raises OSError if one fails."""
        if not self._prepared:
            self.prepare()
        self._run(0, self._prepared)
        self.check()

    def check(self) -> None:
        """Raise OSError if a call has failed, or if the calls were not made."""
        if self[self._last] >= 0:  # it was called, and so were all before it
            return
        failure = self.failure()
        if failure is not None:
            raise failure.error()
        if self[self._last] == -_NOT_CALLED:
            step, call, _arguments = self._calls[-1]
            raise OSError(errno.ECANCELED, f"{os.strerror(errno.ECANCELED)}: {call} ({step})")

    @property
    def prepared(self) -> int:
        """The address of the list that :meth:`prepare` has laid out."""
        return self._prepared

    def run_fork(self, clone: Result) -> int:
        """Make the calls in this single-threaded process, which forks at the call ``clone``.

        The child makes the calls after it. Returns the PID of the child, 0 in the child, or a
        negative number if there is none. :meth:`failure` returns the error in both processes.
        """
        before, in_parent, in_child = native_code.fork_handlers()
        before()
        self._run(0, self._prepared)
        pid = self[clone]
        (in_child if pid == 0 else in_parent)()
        return pid

    def spawn(self, flags: int = 0, *, cgroup: int = -1) -> tuple[int, int]:
        """Make the calls in a child until it executes a program or ends; return PID and pidfd.

        ``flags`` are those of clone3(2) in addition to CLONE_VM, CLONE_VFORK, CLONE_PIDFD and
        CLONE_CLEAR_SIGHAND. ``cgroup`` is a descriptor of the cgroup v2 to start in, or -1. The
        child starts with all signals blocked. Its exit status is 127 if no program is executed.
        """
        self.prepare()
        self.block_signals()
        try:
            return native_code.spawn(self._run, flags, cgroup, self._prepared)
        finally:
            self.unblock_signals()

    def block_signals(self) -> None:
        """Block all signals of this thread until :meth:`unblock_signals`.

        In a forked child they are unblocked by the calls of :meth:`restore_signals`.
        """
        sc.block_signals(self._mask)

    def unblock_signals(self) -> None:
        """Restore the signal mask of this thread."""
        sc.set_signal_mask(self._mask)

    def run_in_child(self, flags: int = 0) -> None:
        """Make the calls in a child and wait for it to end; raises OSError if one fails."""
        failure = self.try_in_child(flags)
        if failure is not None:
            raise failure.error()

    def try_in_child(self, flags: int = 0) -> Failure | None:
        """Make the calls in a child, wait for it to end, and return the call that failed, if any.

        With CLONE_FILES, descriptors that a failed batch has opened are closed.
        """
        pid, pidfd = self.spawn(flags)
        process.await_exit(pid, pidfd, _EXIT_TIMEOUT)
        os.close(pidfd)
        failure = self.failure()
        if failure is not None and flags & sc.CLONE_FILES:
            self.close_leaks()
        return failure

    def _assemble(self) -> int:
        """Lay out the batch in a buffer of this process; return the address of the buffer."""
        self._buffer, address = self._lay_out(self._words, None)
        return address

    def image(self, address: int, mask: bytes) -> bytearray:
        """Return the batch laid out for a process that has it at ``address``.

        ``mask`` is the signal mask that :meth:`restore_signals` sets there. It ends with room for a
        record, because the end of the list is reported as a record too.
        """
        self._text[self._mask_at : self._mask_at + len(mask)] = mask
        words = list(self._words)
        modes = enumerate(words[_MODE::_SIZE])
        words[_MODE::_SIZE] = [mode | index << _INDEX_SHIFT for index, mode in modes]
        return self._lay_out(words, address)[0] + bytes(RECORD_SIZE)

    def _lay_out(self, records: list[int], address: int | None) -> tuple[bytearray, int]:
        """Return a buffer with records, tables and strings, and its address.

        Without ``address`` it is the address of the buffer in this process.
        """
        words = [*records, _END]
        texts = list(self._texts)
        strings = bytearray(self._text)  # a copy: those of tables are added to it, not to the batch
        tables, placed = [], dict[int, int]()
        for place, table in self._tables:
            tables.append((place, placed.setdefault(id(table), len(words))))
            # Each table once: the execve calls of one command share its environment.
            for entry in table if placed[id(table)] == len(words) else ():
                if isinstance(entry, bytes):
                    texts.append((len(words), _append(strings, entry)))
                words.append(0 if isinstance(entry, bytes) else entry & _WORD)
        size = 8 * len(words)
        buffer = bytearray(size) + strings
        start = native_code.address_of(buffer) if address is None else address
        for place, target in (*tables, *self._links):
            words[place] = start + 8 * target
        self._mask = start + size + self._mask_at
        for place, at in texts:
            words[place] = start + size + at
        struct.pack_into(f"={len(words)}Q", buffer, 0, *words)
        return buffer, start

    # Results.

    def __getitem__(self, result: Result) -> int:
        """Return the result of a call: a negative errno for an error.

        It is the lowest 64-bit integer if the call was not made or has not returned.
        """
        value: int = struct.unpack_from("=q", self._buffer, 8 * (result.index * _SIZE + _RESULT))[0]
        return value

    def argument(self, result: Result, place: int, size: int) -> bytes:
        """Return ``size`` bytes from the pointer that is argument ``place`` of a call.

        The first argument has the place 0. The kernel may have written to the buffer.
        """
        (address,) = struct.unpack_from(
            "=Q", self._buffer, 8 * (result.index * _SIZE + _FIRST + place)
        )
        start = address - native_code.address_of(self._buffer)
        return bytes(self._buffer[start : start + size])

    def failure(self) -> Failure | None:
        """Return the call whose error has ended the batch, if any."""
        results = struct.unpack_from(f"={len(self._words)}q", self._buffer)[_RESULT::_SIZE]
        for index, result in enumerate(results):
            if -4096 < result < 0 and not self._words[index * _SIZE + _MODE] & _GO_ON:
                return self.failure_of(index, result)
        return None

    def failure_of(self, index: int, result: int) -> Failure:
        """Return the failure of the call ``index``, whose result is ``result``."""
        step, call, arguments = self._calls[index]
        return Failure(
            step, -result, f"{call}({', '.join(map(_format, arguments))})", self.may_fail(index)
        )

    def may_fail(self, index: int) -> bool:
        """Return whether the call ``index`` may fail without ending the batch."""
        return bool(self._words[index * _SIZE + _MODE] & _GO_ON)

    @staticmethod
    def read_record(record: bytes) -> tuple[int | None, int]:
        """Return index and result of a call from its record in an :meth:`image`.

        The index is None for the end of the list.
        """
        words: tuple[int, ...] = struct.unpack(f"={_SIZE - 1}Qq", record)
        return (None if words[0] == _END else words[_MODE] >> _INDEX_SHIFT), words[_RESULT]

    def ended_early(self, last: Result) -> bool:
        """Return whether the child was killed before the call ``last``, which does not return."""
        return self[Result(last.index - 1)] == -_NOT_CALLED

    def close_leaks(self) -> None:
        """Close the descriptors that a failed batch has opened in this process (CLONE_FILES)."""
        for index in self._opened if self._buffer else ():
            fd = self[Result(index)]
            if fd >= 0:
                os.close(fd)


def _append(strings: bytearray, text: bytes) -> int:
    at = len(strings)
    strings += text
    strings += bytes(8 - len(text) % 8)  # terminates the string, and aligns the next one
    return at


def _format(argument: object) -> str:
    if isinstance(argument, bytes):
        return argument[:100].decode(errors="backslashreplace")
    return "..." if isinstance(argument, Result | Table) else str(argument)
