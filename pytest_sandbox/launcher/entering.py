"""How a process gets into a container: the steps of a payload, the same for a command that is executed and for a fork of a test's process."""

from __future__ import annotations

import os
import signal
import struct
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from pytest_sandbox.errors import ContainerStopped
from pytest_sandbox.linux import capabilities, namespaces, process, seccomp
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.program import Program, Table

if TYPE_CHECKING:
    from pytest_sandbox.launcher.plan import Plan
    from pytest_sandbox.launcher.users import User
    from pytest_sandbox.linux.program import Result

__all__ = ["PYTHON_IGNORES", "Begun", "Entrance"]

_KEYCTL_JOIN_SESSION_KEYRING = 1
_SECCOMP_SET_MODE_FILTER = 1


@dataclass(frozen=True, slots=True)
class Begun:
    """A program for a child: the flags of its clone, and the result that is the child's number where it is not the first."""

    program: Program
    flags: int
    younger: Result | None


@dataclass(frozen=True, slots=True)
class Entrance:
    """Where a payload enters: a container's plan, a pidfd of its init, how its groups are joined, and two user namespaces, -1 where there are none.

    ``user_fd`` is the payloads' own; ``builder_fd`` is what the container was built in by who is not root. ``cgroup`` is the descriptor of a
    version 2 group to begin in, ``joins`` are the files to which "0" is written otherwise.
    """

    plan: Plan
    pidfd: int
    joins: tuple[str, ...]
    cgroup: int
    user_fd: int
    builder_fd: int

    def begin(self, *, shares_files: bool = False) -> Begun:
        """Begin a program that :meth:`spawn` makes in a child inside the container's PID namespace.

        Entering that takes power in one's own user namespace. Who is not root gains it in a child, whose own child goes on, as a child of
        this process (CLONE_PARENT).
        """
        flags = sc.CLONE_FILES if shares_files else 0
        if self.builder_fd < 0:
            return Begun(Program(), flags, None)
        program = Program()
        program.add("become the builder", "setns", self.builder_fd, sc.CLONE_NEWUSER)
        program.add("enter namespaces", "setns", self.pidfd, sc.CLONE_NEWPID)
        how = sc.sibling_arguments(flags)
        return Begun(program, flags, program.add("enter namespaces", "clone3", how, len(how), stop_if_positive=True))

    def spawn(self, begun: Begun) -> int:
        """Make a begun program's calls; returns the number of the child, which is to be awaited."""
        try:
            with nullcontext() if begun.younger else namespaces.children_in(self.pidfd):
                pid, pidfd = begun.program.spawn(begun.flags, cgroup=self.cgroup)
        except OSError as error:
            if process.ended(self.pidfd, 0):
                raise ContainerStopped.ended() from error
            raise
        os.close(pidfd)
        if begun.younger is None:
            return pid
        os.waitpid(pid, 0)
        return max(begun.program[begun.younger], -1)

    def add_enter(self, program: Program) -> None:
        """Append the way in: groups, limits, namespaces. The PID namespace is the caller's matter: it has to be set before the fork."""
        user_fd = self.user_fd if self.plan.user_namespace else -1
        program.extend(_entering(self.joins, self.plan.ulimits, self.pidfd, self.plan.own_network, user_fd))

    def add_lock_down(self, program: Program, user: User | None) -> None:
        """Append the giving up, for good, of all that the plan's payload may not have, and the change to its user."""
        program.extend(self.lock_down(user))

    def lock_down(self, user: User | None) -> Program:
        """Return the same as a program of its own, which is ready to be run in forks."""
        is_root = (os.geteuid() == 0 or self._is_rooted) if user is None else user.uid == 0
        in_new = self.builder_fd >= 0 or (self.user_fd >= 0 and self.plan.user_namespace)
        held = capabilities.supported() if in_new else sc.getcaps()[1]
        left = self.plan.capabilities & held if is_root else 0
        plan = self.plan
        return _locking_down(
            plan.capabilities, left, user, self.builder_fd >= 0, plan.no_new_privileges, filtered=plan.seccomp, packets=plan.packet_sockets
        )

    @property
    def _is_rooted(self) -> bool:
        """Whether a user is root inside."""
        return self.builder_fd >= 0 and self.plan.user_namespace and not self.plan.is_on_host


# What enters a living container is the same for each of its commands and calls, and costs more to put together than to make.
@lru_cache(maxsize=16)
def _entering(joins: tuple[str, ...], ulimits: tuple[tuple[str, int, int], ...], pidfd: int, own_network: bool, user_fd: int) -> Program:
    program = Program()
    for path in joins:
        program.write("join groups", os.fsencode(path), b"0")
    process.add_ulimits(program, "raise ulimits", ulimits)
    namespaces.add_enter(program, "enter namespaces", pidfd, network=own_network, user_fd=user_fd)
    program.add("new session", "setsid", go_on=True)  # a leader of a session already has what it would get
    return program


@lru_cache(maxsize=16)
def _locking_down(
    kept: int, left: int, user: User | None, by_user: bool, no_new_privileges: bool, *, filtered: bool, packets: bool
) -> Program:
    program = Program()
    program.add("join a new session keyring", "keyctl", _KEYCTL_JOIN_SESSION_KEYRING, None, 0, 0, 0)
    if no_new_privileges:
        program.add("no new privileges", "prctl", sc.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    elif filtered:  # then loading a filter takes CAP_SYS_ADMIN, which the end of the capabilities may take away
        _add_filter(program, kept, packets)
    for number in range(capabilities.supported().bit_length()):
        if not kept >> number & 1:
            program.add("drop capabilities", "prctl", sc.PR_CAPBSET_DROP, number, 0, 0, 0)
    if user is not None:
        _add_user(program, user, by_user=by_user)
    # Without inheritable ones a program that root executes gains none past the bounding set (CVE-2022-24769), and none is ambient.
    low, high = left & 0xFFFFFFFF, left >> 32
    header = struct.pack("Ii", sc.CAPABILITY_VERSION, 0)
    program.add("drop capabilities", "capset", header, struct.pack("6I", low, low, 0, high, high, 0))
    if no_new_privileges and filtered:
        _add_filter(program, kept, packets)
    program.prepare()
    return program


def _add_filter(program: Program, kept: int, packets: bool) -> None:
    code = seccomp.program(kept, packets=packets)
    program.add("load the seccomp filter", "seccomp", _SECCOMP_SET_MODE_FILTER, 0, Table((len(code) // 8, code)))


def _add_user(program: Program, user: User, *, by_user: bool) -> None:
    groups = struct.pack(f"{len(user.groups)}I", *user.groups)
    # Without subordinate ids nobody's groups can be changed (user_namespaces(7)): what is left are rights that the caller has anyway.
    program.add("become user", "setgroups", len(user.groups), groups, go_on=by_user)
    program.add("become user", "setresgid", user.gid, user.gid, user.gid)
    program.add("become user", "setresuid", user.uid, user.uid, user.uid)


#: What :mod:`subprocess` restores: Python ignores these.
PYTHON_IGNORES = (signal.SIGPIPE, signal.SIGXFSZ)
