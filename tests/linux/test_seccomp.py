"""The compiled filter, run by an interpreter of its own, against the policy that it was compiled
from; for every machine, entry and number.
"""

from __future__ import annotations

import struct

import pytest

from pytest_sandbox.linux import capabilities, seccomp
from pytest_sandbox.linux.seccomp import profile as policy

DOCKER = capabilities.DOCKER_DEFAULT
JUMP = 5  # BPF_JMP
WORDS = {0x7FFF0000: "allow", 0x00050001: "refuse", 0x00050026: "missing", 0x80000000: "kill"}


def run(program, number, audit, *arguments):
    """Interpret classic BPF as the kernel does (net/core/filter.c); returns the filter's word."""
    data = struct.pack(
        "<IIQQQ", number, audit, 0, *(one & 0xFFFFFFFFFFFFFFFF for one in (*arguments, 0, 0)[:2])
    )
    code = list(struct.iter_unpack("<HBBI", program))
    at = accumulator = index = 0
    while True:
        operation, then, otherwise, value = code[at]
        at += 1
        if operation == seccomp.LOAD:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif operation == seccomp.LOAD_INDEX:
            index = value
        elif operation == seccomp.AND:
            accumulator &= value
        elif operation == seccomp.RETURN:
            return WORDS[value], index
        else:
            holds = {
                seccomp.JUMP_EQUAL: accumulator == value,
                seccomp.JUMP_AT_LEAST: accumulator >= value,
                seccomp.JUMP_ANY_BIT: bool(accumulator & value),
            }[operation]
            at += then if holds else otherwise


def judge(rule, arguments):
    """What a rule for an argument says, without any compiling."""
    refused = "missing" if rule.errno == 38 else "refuse"
    argument = arguments[rule.index] & 0xFFFFFFFF & rule.mask
    if rule.then and argument == rule.then[0]:
        return judge(rule.then[1], arguments)
    if rule.bits and argument & rule.bits:
        return refused
    if rule.only:
        return "allow" if argument in rule.only else refused
    return refused if argument in rule.never else "allow"


def expected(name, number, newest, granted, arguments=(0, 0), *, packets=False):
    """What the policy says, without any compiling."""
    rule = seccomp.decide(name, granted, packets=packets)
    if rule in policy.BY_ARGUMENT:
        return judge(policy.BY_ARGUMENT[rule], arguments)
    return "missing" if rule == "refuse" and number > newest else rule


VALUES = (
    0,
    1,
    2,
    8,
    17,
    38,
    40,
    0x5412,
    0x541C,
    0x8080A,
    0x10000000,
    0x02000000,
    0xFFFFFFFF,
    0x100000026,
)
ARGUMENTS = [(first, second) for first in VALUES for second in VALUES]
ENTRIES = [(machine, entry) for machine, entries in seccomp.MACHINES.items() for entry in entries]


@pytest.mark.parametrize(
    "granted",
    [
        0,
        DOCKER,
        capabilities.ALL,
        capabilities.bit("SYS_ADMIN"),
        DOCKER | capabilities.bit("SYS_PTRACE"),
    ],
    ids=hex,
)
@pytest.mark.parametrize("packets", [False, True])
@pytest.mark.parametrize(
    ("machine", "entry"), ENTRIES, ids=lambda value: getattr(value, "table", value)
)
def test_every_number_of_every_entry(machine, entry, granted, packets):
    """Each number, known or not, gets what the policy says of its name and arguments."""
    program = seccomp.program(granted, machine, packets=packets)
    table = seccomp.numbers(entry.table)
    newest = next(number for number, name in table.items() if name == policy.NEWEST)
    wrong = {}
    for number in sorted({*range(600), *table, *(one + 1 for one in table), 0x3FFFFFFF}):
        name = table.get(number, "")
        for arguments in ARGUMENTS if name in policy.BY_ARGUMENT else ((0, 0),):
            want = expected(name, number, newest, granted, arguments, packets=packets)
            found = run(program, number, entry.audit, *arguments)[0]
            if want != found:
                wrong[name or number, arguments] = (want, found)
    assert {} == wrong


@pytest.mark.parametrize("granted", [0, DOCKER])
def test_x32_has_no_more_rights(granted):
    """With its bit, a number below 512 is what it is without, and one of x32's own is what the
    table says.
    """
    program = seccomp.program(granted, "x86_64")
    native, x32 = seccomp.numbers("X86_64"), seccomp.numbers("X32")
    audit = seccomp.MACHINES["x86_64"][0].audit
    for number in range(450):
        assert run(program, number, audit)[0] == run(program, number | seccomp.X32_BIT, audit)[0], (
            native.get(number)
        )
    newest = next(number for number, name in native.items() if name == policy.NEWEST)
    for number in range(seccomp.X32_FIRST, max(x32) + 1):
        name = x32.get(number, "")
        assert (
            expected(name, number, newest, granted)
            == run(program, number | seccomp.X32_BIT, audit)[0]
        ), name


@pytest.mark.parametrize(
    ("name", "arguments", "answers"),
    [
        ("socket", (policy.AF_PACKET, 3), ("refuse", "allow")),
        ("socket", (policy.AF_INET, policy.SOCK_PACKET | 0x80000), ("refuse", "allow")),
        ("socket", (policy.AF_INET, 1), ("allow", "allow")),
        ("socket", (policy.AF_ALG, 5), ("refuse", "refuse")),
        ("ioctl", (0, policy.TIOCSTI), ("refuse", "refuse")),
        ("ioctl", (0, policy.TIOCLINUX | 1 << 32), ("refuse", "refuse")),
        ("ioctl", (0, 0x5413), ("allow", "allow")),
    ],
)
def test_what_goes_beyond_dockers_policy(name, arguments, answers):
    """Typing into a terminal is refused, and a packet socket without NET_RAW asked for, by the old
    way to make one, too.
    """
    number = next(number for number, known in seccomp.numbers("X86_64").items() if known == name)
    programs = [seccomp.program(DOCKER, "x86_64", packets=packets) for packets in (False, True)]
    audit = seccomp.MACHINES["x86_64"][0].audit
    assert answers == tuple(run(program, number, audit, *arguments)[0] for program in programs)


def test_another_architecture_is_killed():
    """A call by an entry that the machine does not have ends the process."""
    assert (
        "kill" == run(seccomp.program(DOCKER, "x86_64"), 0, seccomp.MACHINES["aarch64"][0].audit)[0]
    )


def test_a_machine_without_a_table_is_refused():
    """No filter is better than none by accident: it is said."""
    with pytest.raises(ValueError, match="no seccomp policy for machine 'vax'"):
        seccomp.program(DOCKER, "vax")


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_the_kernel_would_take_it(machine):
    """At most 4,096 instructions, every jump forward and inside, the last one a return."""
    code = list(struct.iter_unpack("<HBBI", seccomp.program(DOCKER, machine)))
    assert len(code) <= 4096
    assert seccomp.RETURN == code[-1][0]
    assert all(
        at + 1 + max(then, otherwise) < len(code)
        for at, (kind, then, otherwise, _value) in enumerate(code)
        if kind & 7 == JUMP
    )


@pytest.mark.parametrize(
    "name",
    [
        "mount",
        "unshare",
        "setns",
        "bpf",
        "keyctl",
        "add_key",
        "request_key",
        "userfaultfd",
        "io_uring_setup",
        "kexec_load",
        "init_module",
        "open_by_handle_at",
        "perf_event_open",
        "swapon",
        "reboot",
        "iopl",
        "pidfd_getfd",
    ],
)
def test_dangerous_calls_are_named(name):
    """What makes a kernel's bug reachable is refused to docker's capabilities."""
    assert "refuse" == seccomp.decide(name, DOCKER)


@pytest.mark.parametrize(
    ("granted", "name"),
    [
        ("SYS_ADMIN", "mount"),
        ("SYS_PTRACE", "pidfd_getfd"),
        ("SYS_BOOT", "reboot"),
        ("SYS_TIME", "settimeofday"),
        ("BPF", "bpf"),
        ("SYS_CHROOT", "chroot"),
        ("DAC_READ_SEARCH", "open_by_handle_at"),
    ],
)
def test_a_capability_brings_its_calls(granted, name):
    """cap_add opens what docker's profile opens with it, and nothing more."""
    assert ("refuse", "allow") == (
        seccomp.decide(name, 0),
        seccomp.decide(name, capabilities.bit(granted)),
    )
    assert "refuse" == seccomp.decide("keyctl", capabilities.bit(granted))
