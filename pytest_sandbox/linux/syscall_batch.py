"""Batches: lists of system calls as data, made in one go by a few machine instructions
(tools/machine_code).

A container is built, and a process is put into it, by forty to ninety system calls. Made one by one
from Python they need a fork of the interpreter, whose pages are then copied one fault at a time: 5
ms of CPU. As a list they run in a child that shares its parent's memory (clone3(2) with CLONE_VM |
CLONE_VFORK, as posix_spawn(3) does): nothing is copied, however large the process is, and each
call's result stands in the list when the parent goes on, so that an error says which step failed,
with which arguments.
"""

from __future__ import annotations

import os
import signal
import struct
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from pytest_sandbox.linux import machine_code, process, seccomp
from pytest_sandbox.linux import syscall as sc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["RECORD_SIZE", "Failure", "Record", "Result", "SyscallBatch", "Table", "number"]

# Of a record, in words; the bits of its mode.
_SIZE, _FIRST, _THIRD, _MODE, _RESULT = 9, 1, 3, 7, 8
_GO_ON, _STOP_IF_POSITIVE, _FIRST_IS_RESULT, _THIRD_IS_RESULT = 1, 2, 4, 8
_NOT_MADE = 1 << 63  # no call returns it
_END = (1 << 64) - 1
#: Bytes of a record.
RECORD_SIZE = 8 * _SIZE
_INDEX_SHIFT = 16  # of a record's number in its mode, whose lower bits are the flags
_WORD = (1 << 64) - 1
_PATIENCE = 2.0  # seconds until a child that has made its calls has ended
_IGNORED_SIGCHLD = struct.pack("QQQQ", signal.SIG_IGN, 0, 0, 0)  # the kernel's struct sigaction


@dataclass(frozen=True, slots=True)
class Result:
    """What a call of the batch will return, for the first or third argument of a later one."""

    index: int


@dataclass(frozen=True, slots=True)
class Record:
    """The address of a call's record, for a call that writes it to who reads
    :meth:`SyscallBatch.read_record`.
    """

    index: int


class Table(tuple[int | bytes, ...]):
    """An argument that points to an array of words: numbers, or addresses of texts."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that failed, the step that it belongs to, its errno, and whether it may fail
    (``go_on``).
    """

    step: str
    errno: int
    call: str
    may_be: bool = False

    def error(self) -> OSError:
        """Return it as an exception, whose text names the call."""
        return OSError(self.errno, f"{os.strerror(self.errno)}: {self.call}")


@cache
def _numbers() -> dict[str, int]:
    table = seccomp.MACHINES[_machine()][0].table
    return {name: number for number, name in seccomp.numbers(table).items()}


def _machine() -> str:
    machine = os.uname().machine
    if machine not in machine_code.RUN:
        raise OSError(38, f"containers are made on {', '.join(machine_code.RUN)}, not on {machine}")
    return machine


def number(call: str) -> int:
    """Return this machine's number of a system call."""
    return _numbers()[call]


@cache
def _code() -> Callable[[int, int], int]:
    return sc.map_code(machine_code.RUN[_machine()])


class SyscallBatch:
    """A list of system calls under construction, then run or spawned once; results are asked for
    afterwards by ``batch[result]``.
    """

    def __init__(self) -> None:
        self._words: list[int] = []
        self._tables: list[tuple[int, Table]] = []
        self._text = bytearray()
        self._texts: list[tuple[int, int]] = []  # which word points to which place of the text
        self._links: list[tuple[int, int]] = []  # which word points to which record's result
        self._said: list[tuple[str, str, tuple[object, ...]]] = []
        self._opened: list[int] = []
        self._mask_at = _append(self._text, bytes(8))
        self._buffer = bytearray()
        self._prepared = 0  # the buffer's address
        self._mask = 0  # where the calls of restore_signals read it

    def add(
        self,
        step: str,
        call: str,
        *arguments: int | bytes | Result | Record | Table | None,
        go_on: bool = False,
        stop_if_positive: bool = False,
    ) -> Result:
        """Append a call.

        Texts get their ending zero; None is a null pointer; an error ends the batch unless
        ``go_on``.
        """
        start = len(self._words)
        self._words += [
            number(call),
            0,
            0,
            0,
            0,
            0,
            0,
            _GO_ON * go_on | _STOP_IF_POSITIVE * stop_if_positive,
            _NOT_MADE,
        ]
        for place, argument in enumerate(arguments, start + _FIRST):
            if type(argument) is int:
                self._words[place] = argument & _WORD
            elif argument is not None:
                self._place(start, place, argument)
        self._said.append((step, call, arguments))
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
        """Append all calls of another batch, which may be appended to many: its results are not
        to be asked for here.
        """
        words, text = len(self._words), len(self._text)
        self._words += other._words
        self._text += other._text
        self._texts += [(place + words, at + text) for place, at in other._texts]
        self._links += [(place + words, target + words) for place, target in other._links]
        self._tables += [(place + words, table) for place, table in other._tables]
        self._said += other._said

    # -- calls that many batches make

    def open(
        self, step: str, path: bytes, flags: int, *, mode: int = 0, go_on: bool = False
    ) -> Result:
        """Append openat(2); what is open when a shared table's batch fails is closed by
        :meth:`close_leaks`.
        """
        result = self.add(step, "openat", -100, path, flags | os.O_CLOEXEC, mode, go_on=go_on)
        self._opened.append(result.index)
        return result

    def open_as(self, step: str, path: bytes, how: bytes) -> Result:
        """Append openat2(2); ``how`` is what :func:`~pytest_sandbox.linux.syscall.open_how`
        returns.
        """
        result = self.add(step, "openat2", -100, path, how, len(how))
        self._opened.append(result.index)
        return result

    def open_mount(self, step: str, path: bytes) -> Result:
        """Append open_tree(2) of a detached copy of a mount."""
        result = self.add(step, "open_tree", -100, path, sc.OPEN_TREE_CLONE | sc.OPEN_TREE_CLOEXEC)
        self._opened.append(result.index)
        return result

    def close(self, step: str, fd: Result) -> None:
        """Append the close of a descriptor."""
        self.add(step, "close", fd, go_on=True)
        if fd.index in self._opened:
            self._opened.remove(fd.index)

    def write(self, step: str, path: bytes, data: bytes, *, go_on: bool = False) -> None:
        """Append what writes a file of the kernel's in one go."""
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
        """Append a mount."""
        return self.add(step, "mount", source, target, fstype, flags, data)

    def restore_signals(self, step: str, numbers: Iterable[int] = ()) -> None:
        """Append the end of what :meth:`spawn` or :meth:`block_signals` blocks; the signals
        ``numbers`` get their default action.
        """
        for one in numbers:
            self.add(step, "rt_sigaction", one, bytes(32), None, 8)
        at = len(self._words) + _FIRST + 1
        self.add(step, "rt_sigprocmask", int(signal.SIG_SETMASK), None, None, 8)
        self._texts.append((at, self._mask_at))

    def reap_by_kernel(self, step: str) -> None:
        """Append what has the kernel reap the children of the process, also after it executes a
        batch (SIGCHLD is ignored).
        """
        self.add(step, "rt_sigaction", signal.SIGCHLD, _IGNORED_SIGCHLD, None, 8)

    # -- making the calls

    def prepare(self) -> None:
        """Get ready before a fork, in which :meth:`run` then makes no objects: whatever it touches,
        it has to copy first.
        """
        self._prepared = self._assemble()
        self._run = _code()
        self._last = Result(len(self._said) - 1)

    def run(self) -> None:
        """Make the calls in this thread. Raises the failed call's :class:`OSError`."""
        if not self._prepared:
            self.prepare()
        self._run(0, self._prepared)
        if self[self._last] >= 0:  # it was made, and so were all before it
            return
        failure = self.failure()
        if failure is not None:
            raise failure.error()

    def run_fork(self, clone: Result) -> int:
        """Make the calls in this process, which has one thread and forks by the call ``clone``.

        Returns the PID of the fork; 0 in the fork, which has made the calls that follow, or a
        negative number where there is none. :meth:`failure` tells in both what went wrong.
        """
        before, after, inside = sc.fork_handlers()
        before()
        self._run(0, self._prepared)
        forked = self[clone]
        (inside if forked == 0 else after)()
        return forked

    def spawn(self, flags: int = 0, *, cgroup: int = -1) -> tuple[int, int]:
        """Make the calls in a child, and wait until it has executed a program or ended; returns its
        number and a pidfd.

        ``flags`` are clone3's, to which CLONE_VM, CLONE_VFORK, CLONE_PIDFD and CLONE_CLEAR_SIGHAND
        are added. The child starts with all signals blocked. A batch that does not end by
        executing another ends with exit status 127.
        """
        self.prepare()
        self.block_signals()
        try:
            return sc.spawn_code(self._run, flags, cgroup, self._prepared)
        finally:
            self.unblock_signals()

    def block_signals(self) -> None:
        """Block all signals of this thread until :meth:`unblock_signals`, or until a fork has made
        what :meth:`restore_signals` appended.
        """
        sc.block_signals(self._mask)

    def unblock_signals(self) -> None:
        """Give the thread the mask again that it had."""
        sc.set_signal_mask(self._mask)

    def run_in_child(self, flags: int = 0) -> None:
        """Make the calls in a child, and wait for its end.

        Raises the failed call's :class:`OSError`.
        """
        failure = self.try_in_child(flags)
        if failure is not None:
            raise failure.error()

    def try_in_child(self, flags: int = 0) -> Failure | None:
        """Make the calls in a child, wait for its end, and return the call that failed, if any.

        With CLONE_FILES, what a failed batch has left open is closed.
        """
        pid, pidfd = self.spawn(flags)
        process.await_exit(pid, pidfd, _PATIENCE)
        os.close(pidfd)
        failure = self.failure()
        if failure is not None and flags & sc.CLONE_FILES:
            self.close_leaks()
        return failure

    def _assemble(self) -> int:
        """Lay out the batch in a buffer of this process's; return the buffer's address."""
        self._buffer, address = self._laid_out(self._words, None)
        return address

    def image(self, address: int, mask: bytes) -> bytearray:
        """Return the batch for a process that finds it at ``address``.

        ``mask`` is the signal mask that :meth:`restore_signals` restores there. A record can be
        read at the end of the list, too.
        """
        self._text[self._mask_at : self._mask_at + len(mask)] = mask
        words = list(self._words)
        modes = enumerate(words[_MODE::_SIZE])
        words[_MODE::_SIZE] = [mode | index << _INDEX_SHIFT for index, mode in modes]
        return self._laid_out(words, address)[0] + bytes(RECORD_SIZE)

    def _laid_out(self, records: list[int], address: int | None) -> tuple[bytearray, int]:
        """Return records, tables and texts in one buffer, with every address in it, and where it
        begins.

        Without an ``address`` that is where the buffer lies in this process.
        """
        words = [*records, _END]
        texts = list(self._texts)
        more = bytearray(
            self._text
        )  # what tables point to is not what another batch is extended by
        tables, placed = [], dict[int, int]()
        for place, table in self._tables:
            tables.append((place, placed.setdefault(id(table), len(words))))
            # Each once: all tries of a command share its environment.
            for entry in table if placed[id(table)] == len(words) else ():
                if isinstance(entry, bytes):
                    texts.append((len(words), _append(more, entry)))
                words.append(0 if isinstance(entry, bytes) else entry & _WORD)
        size = 8 * len(words)
        buffer = bytearray(size) + more
        start = sc.address_of(buffer) if address is None else address
        for place, target in (*tables, *self._links):
            words[place] = start + 8 * target
        self._mask = start + size + self._mask_at
        for place, at in texts:
            words[place] = start + size + at
        struct.pack_into(f"={len(words)}Q", buffer, 0, *words)
        return buffer, start

    # -- afterwards

    def __getitem__(self, result: Result) -> int:
        """Return what a call returned: a negative errno for an error; for one that was not made, or
        has not returned, the lowest number.
        """
        value: int = struct.unpack_from("=q", self._buffer, 8 * (result.index * _SIZE + _RESULT))[0]
        return value

    def argument(self, result: Result, place: int, size: int) -> bytes:
        """Return ``size`` bytes of the text that a call had as its argument ``place`` (the first is
        0), as the kernel has left it.
        """
        (address,) = struct.unpack_from(
            "=Q", self._buffer, 8 * (result.index * _SIZE + _FIRST + place)
        )
        start = address - sc.address_of(self._buffer)
        return bytes(self._buffer[start : start + size])

    def failure(self) -> Failure | None:
        """Return the call that ended the batch by an error; None where there is none."""
        results = struct.unpack_from(f"={len(self._words)}q", self._buffer)[_RESULT::_SIZE]
        for index, result in enumerate(results):
            if -4096 < result < 0 and not self._words[index * _SIZE + _MODE] & _GO_ON:
                return self.failure_of(index, result)
        return None

    def failure_of(self, index: int, result: int) -> Failure:
        """Return how the call ``index`` failed, which has returned ``result``."""
        step, call, arguments = self._said[index]
        return Failure(
            step, -result, f"{call}({', '.join(map(_shown, arguments))})", self.may_fail(index)
        )

    def may_fail(self, index: int) -> bool:
        """Tell whether an error of the call ``index`` does not end the batch."""
        return bool(self._words[index * _SIZE + _MODE] & _GO_ON)

    @staticmethod
    def read_record(record: bytes) -> tuple[int | None, int]:
        """Return which call a record of an :meth:`image` is of, None for the list's end, and its
        result.
        """
        words: tuple[int, ...] = struct.unpack(f"={_SIZE - 1}Qq", record)
        return (None if words[0] == _END else words[_MODE] >> _INDEX_SHIFT), words[_RESULT]

    def ended_early(self, last: Result) -> bool:
        """Tell whether the child was killed before it came to the call ``last``, which does not
        return.
        """
        return self[Result(last.index - 1)] == -_NOT_MADE

    def close_leaks(self) -> None:
        """Close what a failed batch left open in a table of descriptors that it shared with this
        process.
        """
        for index in self._opened if self._buffer else ():
            fd = self[Result(index)]
            if fd >= 0:
                os.close(fd)


def _append(texts: bytearray, text: bytes) -> int:
    at = len(texts)
    texts += text
    texts += bytes(8 - len(text) % 8)  # ends it, and aligns the next
    return at


def _shown(argument: object) -> str:
    if isinstance(argument, bytes):
        return argument[:100].decode(errors="backslashreplace")
    return "..." if isinstance(argument, Result | Table) else str(argument)
