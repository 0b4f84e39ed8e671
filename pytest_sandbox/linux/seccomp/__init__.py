"""The seccomp filter of a payload: docker's default policy, compiled to a small BPF program
(Documentation/userspace-api/seccomp_filter.rst).

A program reads the architecture of the call and its number, and finds the answer by halving the
numbers until one range is left. The kernel runs it once for each number while it loads (its cache
of what is always allowed), so that few steps also make a fast load.
"""

from __future__ import annotations

import os
import struct
from errno import ENOSYS, EPERM
from functools import cache
from typing import NamedTuple

from pytest_sandbox.linux import capabilities as caps
from pytest_sandbox.linux import syscall_numbers
from pytest_sandbox.linux.seccomp import profile as policy

__all__ = ["MACHINES", "decide", "numbers", "program"]

# <linux/bpf_common.h>; all jumps compare with a constant, and go forward only.
LOAD = 0x20
LOAD_INDEX = 0x01
AND = 0x54
JUMP_EQUAL = 0x15
JUMP_AT_LEAST = 0x35
JUMP_ANY_BIT = 0x45
RETURN = 0x06

# <linux/seccomp.h>: struct seccomp_data's offsets on a little-endian machine, and what a filter
# returns.
NUMBER = 0
ARCHITECTURE = 4
FIRST_ARGUMENT_LOW = 16
ARGUMENT_SIZE = 8
KILL_PROCESS = 0x80000000
ALLOW = 0x7FFF0000
ERRNO = 0x00050000

X32_BIT = 0x40000000
X32_FIRST = 512  # below it the numbers mean what they mean on x86_64


class Entry(NamedTuple):
    """One way into the kernel: the name of its table, and the value that ``seccomp_data.arch`` has
    (<linux/audit.h>).
    """

    table: str
    audit: int
    native: bool


MACHINES = {
    "x86_64": (Entry("X86_64", 0xC000003E, native=True), Entry("I386", 0x40000003, native=False)),
    "aarch64": (Entry("AARCH64", 0xC00000B7, native=True), Entry("ARM", 0x40000028, native=False)),
}


def program(capabilities: int, machine: str = "", *, packets: bool = False) -> bytes:
    """Return docker's default policy for a payload with these capabilities, as an array of ``struct
    sock_filter``.

    ``packets`` allows packet sockets (packet(7)). ``machine`` is what ``os.uname()`` calls it, by
    default this one. Raises :class:`ValueError` for a machine without a table.
    """
    machine = machine or os.uname().machine
    if machine not in MACHINES:
        raise ValueError(
            f"no seccomp policy for machine {machine!r}; there is one for {', '.join(MACHINES)}"
        )
    return _program(capabilities & _relevant(), machine, packets)


def decide(name: str, capabilities: int, *, packets: bool = False) -> str:
    """Return the answer of the policy to one call: ``"allow"``, ``"refuse"``, ``"missing"``, or the
    name of its rule for an argument.
    """
    if name in _granted(capabilities):
        return "allow"
    if name == "socket" and packets:
        return policy.WITH_PACKETS
    if name in policy.BY_ARGUMENT:
        return name
    if name in policy.REFUSED_AS_MISSING:
        return "missing"
    return "allow" if name in _always() else "refuse"


def numbers(table: str) -> dict[int, str]:
    """Return the names of the system calls by number, of ``"X86_64"``, ``"X32"`` (without its bit),
    ``"I386"``, ``"AARCH64"`` or ``"ARM"``.
    """
    found: dict[int, str] = {}
    for line in getattr(syscall_numbers, table).split("\n"):
        first, *names = line.split() or ["0"]
        found.update(enumerate(names, int(first)))
    return found


@cache
def _relevant() -> int:
    return caps.mask(policy.WITH_CAPABILITY)


@cache
def _always() -> frozenset[str]:
    return frozenset(policy.ALWAYS.split())


@cache
def _granted(capabilities: int) -> frozenset[str]:
    return frozenset(
        name
        for key, calls in policy.WITH_CAPABILITY.items()
        if capabilities & caps.bit(key)
        for name in calls.split()
    )


class Range(NamedTuple):
    """Numbers from ``first`` to the next range's, that get one answer."""

    first: int
    answer: str


def _ranges(table: dict[int, str], capabilities: int, packets: bool) -> list[Range]:
    """Divide all numbers, from 0 on, into ranges with one answer."""
    newest = next(number for number, name in table.items() if name == policy.NEWEST)
    found: list[Range] = []
    for number in sorted({0, newest + 1, *table, *(number + 1 for number in table)}):
        answer = decide(table.get(number, ""), capabilities, packets=packets)
        if answer == "refuse" and number > newest:
            answer = "missing"
        if not found or found[-1].answer != answer:
            found.append(Range(number, answer))
    return found


def _from(first: int, ranges: list[Range]) -> list[Range]:
    """Keep of the ranges what lies at ``first`` and above."""
    above = [each for each in ranges if each.first > first]
    return [Range(first, ranges[len(ranges) - len(above) - 1].answer), *above]


class _Assembler:
    """Instructions whose jumps name where they go: a label, or ``""`` for the next one."""

    def __init__(self) -> None:
        self._code: list[tuple[int, str, str, int]] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        """Name the place of the next instruction."""
        self._labels[name] = len(self._code)

    def add(self, code: int, value: int, then: str = "", otherwise: str = "") -> None:
        """Append one instruction; jumps go to ``then`` where the comparison holds."""
        self._code.append((code, then, otherwise, value))

    def halve(self, ranges: list[Range], end: int) -> None:
        """Append the search for the accumulator's number among ranges, the last of which is taken
        to reach to ``end``.
        """
        if len(ranges) == 1:
            return
        middle = _middle(ranges, end)
        low, high = ranges[:middle], ranges[middle:]
        upper = high[0].answer if len(high) == 1 else f"from {high[0].first} at {len(self._code)}"
        self.add(JUMP_AT_LEAST, high[0].first, upper, low[0].answer if len(low) == 1 else "")
        self.halve(low, high[0].first)
        if len(high) > 1:
            self.label(upper)
            self.halve(high, end)

    def assembled(self) -> bytes:
        """Return the program; :class:`struct.error` where a jump is longer than the 255 that fit
        into its byte.
        """
        return b"".join(
            struct.pack(
                "<HBBI", code, self._distance(at, then), self._distance(at, otherwise), value
            )
            for at, (code, then, otherwise, value) in enumerate(self._code)
        )

    def _distance(self, at: int, label: str) -> int:
        return self._labels[label] - at - 1 if label else 0


def _middle(ranges: list[Range], end: int) -> int:
    """Where to divide some ranges (two or more): as near as can be to the middle of their numbers,
    for each number is run once.
    """
    middle = (ranges[0].first + end) / 2
    return min(range(1, len(ranges)), key=lambda place: abs(ranges[place].first - middle))


@cache
def _program(capabilities: int, machine: str, packets: bool) -> bytes:
    """Lay out: which entry, the tree of each entry, the rules of single calls, the answers (shared,
    at the end).
    """
    native, compatible = MACHINES[machine]
    code = _Assembler()
    code.add(LOAD, ARCHITECTURE)
    code.add(JUMP_EQUAL, native.audit, native.table)
    code.add(JUMP_EQUAL, compatible.audit, compatible.table, "kill")
    for entry in (native, compatible):
        code.label(entry.table)
        _add_entry(code, entry, capabilities, packets)
    _add_rules(code)
    _add_answers(code)
    return code.assembled()


def _add_entry(code: _Assembler, entry: Entry, capabilities: int, packets: bool) -> None:
    if not entry.native:
        # The kernel caches only what it can foresee, which ends at this instruction: 32-bit
        # programs are rare, and a load is 12 µs faster.
        code.add(LOAD_INDEX, 0)
    code.add(LOAD, NUMBER)
    if entry.table == "X86_64":
        _sort_out_x32(code, capabilities, packets)
    _search(code, _ranges(numbers(entry.table), capabilities, packets))


def _search(code: _Assembler, ranges: list[Range]) -> None:
    code.halve(ranges, ranges[-1].first + 1)


def _sort_out_x32(code: _Assembler, capabilities: int, packets: bool) -> None:
    """The x32 entry has the architecture of x86_64: strip its bit; only what it numbers for itself
    needs a tree of its own.
    """
    code.add(JUMP_AT_LEAST, X32_BIT, "", "native")
    code.add(AND, 0xFFFFFFFF & ~X32_BIT)
    code.add(JUMP_AT_LEAST, X32_FIRST, "", "native")
    _search(code, _from(X32_FIRST, _ranges(numbers("X32"), capabilities, packets)))
    code.label("native")


def _add_rules(code: _Assembler) -> None:
    """Append the rules for arguments: each ends the program, nothing falls through from one to the
    next.
    """
    for name, rule in policy.BY_ARGUMENT.items():
        _add_rule(code, name, rule)


def _add_rule(code: _Assembler, name: str, rule: policy.ByArgument) -> None:
    refused = "missing" if rule.errno == ENOSYS else "refuse"
    code.label(name)
    code.add(LOAD, FIRST_ARGUMENT_LOW + ARGUMENT_SIZE * rule.index)
    if rule.mask != 0xFFFFFFFF:
        code.add(AND, rule.mask)
    if rule.then:
        code.add(JUMP_EQUAL, rule.then[0], f"{name}: then")
    if rule.bits:
        code.add(JUMP_ANY_BIT, rule.bits, refused, "allow")
    values, hit, miss = (
        (rule.only, "allow", refused) if rule.only else (rule.never, refused, "allow")
    )
    for value in values:
        code.add(JUMP_EQUAL, value, hit, miss if value == values[-1] else "")
    if rule.then:
        _add_rule(code, f"{name}: then", rule.then[1])


def _add_answers(code: _Assembler) -> None:
    for name, value in {
        "allow": ALLOW,
        "refuse": ERRNO | EPERM,
        "missing": ERRNO | ENOSYS,
        "kill": KILL_PROCESS,
    }.items():
        code.label(name)
        code.add(RETURN, value)
