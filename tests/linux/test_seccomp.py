"""The compiled seccomp filter, interpreted here, compared with the policy for every number."""

from __future__ import annotations

import struct

import pytest

from pytest_sandbox.linux import capabilities, seccomp
from pytest_sandbox.linux.seccomp import profile as policy

DOCKER = capabilities.DOCKER_DEFAULT
JUMP = 5  # BPF_JMP
ACTIONS = {0x7FFF0000: "allow", 0x00050001: "refuse", 0x00050026: "missing", 0x80000000: "kill"}


def run(program, number, audit, *arguments):
    """Interpret classic BPF (net/core/filter.c); return the action and the index register."""
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
            return ACTIONS[value], index
        else:
            is_true = {
                seccomp.JUMP_EQUAL: accumulator == value,
                seccomp.JUMP_AT_LEAST: accumulator >= value,
                seccomp.JUMP_ANY_BIT: bool(accumulator & value),
            }[operation]
            at += then if is_true else otherwise


def action_of_rule(rule, arguments):
    """Return the action of an argument rule, without compiling it."""
    refused = "missing" if rule.errno == 38 else "refuse"
    argument = arguments[rule.index] & 0xFFFFFFFF & rule.mask
    if rule.then and argument == rule.then[0]:
        return action_of_rule(rule.then[1], arguments)
    if rule.bits and argument & rule.bits:
        return refused
    if rule.only:
        return "allow" if argument in rule.only else refused
    return refused if argument in rule.never else "allow"


def expected(name, number, newest, granted, arguments=(0, 0), *, packets=False):
    """Return the action of the policy, without compiling it."""
    rule = seccomp.decide(name, granted, packets=packets)
    if rule in policy.BY_ARGUMENT:
        return action_of_rule(policy.BY_ARGUMENT[rule], arguments)
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
def test_every_number_of_every_architecture(machine, entry, granted, packets):
    """Each number, known or not, has the action of the policy for its name and arguments."""
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
def test_x32(granted):
    """Shared numbers have the same action with the x32 bit, others that of the x32 table."""
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
def test_differences_from_docker(name, arguments, answers):
    """Terminal input ioctls are refused, and packet sockets unless they are allowed."""
    number = next(number for number, known in seccomp.numbers("X86_64").items() if known == name)
    programs = [seccomp.program(DOCKER, "x86_64", packets=packets) for packets in (False, True)]
    audit = seccomp.MACHINES["x86_64"][0].audit
    assert answers == tuple(run(program, number, audit, *arguments)[0] for program in programs)


def test_another_architecture_kills_the_process():
    """A call of an architecture that the machine does not have is fatal."""
    assert (
        "kill" == run(seccomp.program(DOCKER, "x86_64"), 0, seccomp.MACHINES["aarch64"][0].audit)[0]
    )


def test_an_unsupported_machine_is_rejected():
    """There is an error instead of a process without a filter."""
    with pytest.raises(ValueError, match="no seccomp policy for machine 'vax'"):
        seccomp.program(DOCKER, "vax")


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_limits_of_the_kernel(machine):
    """At most 4096 instructions, forward jumps inside the program, a return at the end."""
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
def test_dangerous_calls_are_refused(name):
    """Calls with a history of kernel bugs are refused to docker's default capabilities."""
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
def test_a_capability_allows_its_calls(granted, name):
    """Adding a capability allows the calls that docker's policy has for it, and no others."""
    assert ("refuse", "allow") == (
        seccomp.decide(name, 0),
        seccomp.decide(name, capabilities.bit(granted)),
    )
    assert "refuse" == seccomp.decide("keyctl", capabilities.bit(granted))
