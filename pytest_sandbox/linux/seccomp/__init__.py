"""Compile docker's default seccomp policy to a BPF program.

The program loads the architecture and the number of the system call, and finds the action by binary
search in ranges of numbers. While loading it, the kernel runs it once for each number, to cache
which calls are always allowed; so a short search makes loading fast too. See seccomp(2) and
Documentation/userspace-api/seccomp_filter.rst.
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

# <linux/bpf_common.h>. Jumps compare with a constant, and are forward only.
LOAD = 0x20
LOAD_INDEX = 0x01
AND = 0x54
JUMP_EQUAL = 0x15
JUMP_AT_LEAST = 0x35
JUMP_ANY_BIT = 0x45
RETURN = 0x06

# <linux/seccomp.h>: offsets in struct seccomp_data on a little-endian machine, and return values.
NUMBER = 0
ARCHITECTURE = 4
FIRST_ARGUMENT_LOW = 16
ARGUMENT_SIZE = 8
KILL_PROCESS = 0x80000000
ALLOW = 0x7FFF0000
ERRNO = 0x00050000

X32_BIT = 0x40000000
X32_FIRST = 512  # lower numbers are those of x86_64


class Entry(NamedTuple):
    """An architecture: the name of its table, and its AUDIT_ARCH_* value (<linux/audit.h>)."""

    table: str
    audit: int
    native: bool


MACHINES = {
    "x86_64": (Entry("X86_64", 0xC000003E, native=True), Entry("I386", 0x40000003, native=False)),
    "aarch64": (Entry("AARCH64", 0xC00000B7, native=True), Entry("ARM", 0x40000028, native=False)),
}


def program(capabilities: int, machine: str = "", *, packets: bool = False) -> bytes:
    """Return docker's default policy for these capabilities, as an array of struct sock_filter.

    ``packets`` allows packet sockets (packet(7)). ``machine`` is a machine of uname(2), by default
    this one. Raises ValueError for an unsupported machine.
    """
    machine = machine or os.uname().machine
    if machine not in MACHINES:
        raise ValueError(
            f"no seccomp policy for machine {machine!r}; there is one for {', '.join(MACHINES)}"
        )
    return _program(capabilities & _relevant(), machine, packets)


def decide(name: str, capabilities: int, *, packets: bool = False) -> str:
    """Return the action for a system call: "allow", "refuse" (EPERM) or "missing" (ENOSYS).

    If the action depends on an argument, it is the name of the rule.
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
    """Return the names of the system calls of a table by number.

    The tables are "X86_64", "X32" (numbers without its bit), "I386", "AARCH64" and "ARM".
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
    """System call numbers with the same action, from ``first`` up to the next range."""

    first: int
    action: str


def _ranges(table: dict[int, str], capabilities: int, packets: bool) -> list[Range]:
    """Return all numbers from 0 on as ranges with one action each."""
    newest = next(number for number, name in table.items() if name == policy.NEWEST)
    found: list[Range] = []
    for number in sorted({0, newest + 1, *table, *(number + 1 for number in table)}):
        action = decide(table.get(number, ""), capabilities, packets=packets)
        if action == "refuse" and number > newest:
            action = "missing"
        if not found or found[-1].action != action:
            found.append(Range(number, action))
    return found


def _from(first: int, ranges: list[Range]) -> list[Range]:
    """Return the part of the ranges from ``first`` on."""
    above = [each for each in ranges if each.first > first]
    return [Range(first, ranges[len(ranges) - len(above) - 1].action), *above]


class _Assembler:
    """Instructions whose jump targets are labels, or ``""`` for the next instruction."""

    def __init__(self) -> None:
        self._code: list[tuple[int, str, str, int]] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        """Define a label at the next instruction."""
        self._labels[name] = len(self._code)

    def add(self, code: int, value: int, then: str = "", otherwise: str = "") -> None:
        """Append an instruction; a jump goes to ``then`` if its comparison is true."""
        self._code.append((code, then, otherwise, value))

    def search(self, ranges: list[Range], end: int) -> None:
        """Append a binary search for the accumulator; the last range ends at ``end``."""
        if len(ranges) == 1:
            return
        middle = _middle(ranges, end)
        low, high = ranges[:middle], ranges[middle:]
        upper = high[0].action if len(high) == 1 else f"from {high[0].first} at {len(self._code)}"
        self.add(JUMP_AT_LEAST, high[0].first, upper, low[0].action if len(low) == 1 else "")
        self.search(low, high[0].first)
        if len(high) > 1:
            self.label(upper)
            self.search(high, end)

    def assemble(self) -> bytes:
        """Return the program; raises struct.error if a jump is longer than 255 instructions."""
        return b"".join(
            struct.pack(
                "<HBBI", code, self._distance(at, then), self._distance(at, otherwise), value
            )
            for at, (code, then, otherwise, value) in enumerate(self._code)
        )

    def _distance(self, at: int, label: str) -> int:
        return self._labels[label] - at - 1 if label else 0


def _middle(ranges: list[Range], end: int) -> int:
    """Return the index at which two or more ranges are divided.

    It is as close as possible to the middle of the numbers, not of the ranges, because the kernel
    runs the program once for each number.
    """
    middle = (ranges[0].first + end) / 2
    return min(range(1, len(ranges)), key=lambda place: abs(ranges[place].first - middle))


@cache
def _program(capabilities: int, machine: str, packets: bool) -> bytes:
    """Return the program: the architecture, a search for each, argument rules, and the actions."""
    native, compatible = MACHINES[machine]
    code = _Assembler()
    code.add(LOAD, ARCHITECTURE)
    code.add(JUMP_EQUAL, native.audit, native.table)
    code.add(JUMP_EQUAL, compatible.audit, compatible.table, "kill")
    for entry in (native, compatible):
        code.label(entry.table)
        _add_entry(code, entry, capabilities, packets)
    _add_rules(code)
    _add_actions(code)
    return code.assemble()


def _add_entry(code: _Assembler, entry: Entry, capabilities: int, packets: bool) -> None:
    if not entry.native:
        # This instruction ends the kernel's emulation for its cache (seccomp_is_const_allow()):
        # 32-bit programs are rare, and loading is 12 µs faster.
        code.add(LOAD_INDEX, 0)
    code.add(LOAD, NUMBER)
    if entry.table == "X86_64":
        _add_x32(code, capabilities, packets)
    _search(code, _ranges(numbers(entry.table), capabilities, packets))


def _search(code: _Assembler, ranges: list[Range]) -> None:
    code.search(ranges, ranges[-1].first + 1)


def _add_x32(code: _Assembler, capabilities: int, packets: bool) -> None:
    """Append the x32 calls, which have the architecture of x86_64 and a bit in the number.

    The bit is cleared; only the numbers that x32 does not share need a search of their own.
    """
    code.add(JUMP_AT_LEAST, X32_BIT, "", "native")
    code.add(AND, 0xFFFFFFFF & ~X32_BIT)
    code.add(JUMP_AT_LEAST, X32_FIRST, "", "native")
    _search(code, _from(X32_FIRST, _ranges(numbers("X32"), capabilities, packets)))
    code.label("native")


def _add_rules(code: _Assembler) -> None:
    """Append the rules for arguments; each of them ends the program."""
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


def _add_actions(code: _Assembler) -> None:
    for name, value in {
        "allow": ALLOW,
        "refuse": ERRNO | EPERM,
        "missing": ERRNO | ENOSYS,
        "kill": KILL_PROCESS,
    }.items():
        code.label(name)
        code.add(RETURN, value)
