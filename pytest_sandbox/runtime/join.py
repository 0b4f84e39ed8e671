"""How a process gets into a container: the steps of a payload, the same for a command that is
executed and for a fork of a test's process.
"""

from __future__ import annotations

import os
import signal
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from pytest_sandbox.linux import capabilities, namespaces, process_limits, seccomp
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.spawn import add_helper_start
from pytest_sandbox.linux.syscall_batch import SyscallBatch, Table

if TYPE_CHECKING:
    from pytest_sandbox.linux.syscall_batch import Result
    from pytest_sandbox.runtime.spec import Spec
    from pytest_sandbox.runtime.users import User

__all__ = ["PYTHON_IGNORES", "START_TIMEOUT", "Entrance"]

_KEYCTL_JOIN_SESSION_KEYRING = 1
_SECCOMP_SET_MODE_FILTER = 1


#: Seconds that a command may take to be executed, where its caller gives no timeout: others in
#: the container may stop it or take all CPU time, and nobody can wait for them.
START_TIMEOUT = 60.0
#: What file access from outside needs beside the payload's own rights, as root has it for its
#: files.
_FILE_CAPABILITIES = sum(
    map(capabilities.bit, ("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID"))
)
_OUTSIDE = sc.CLONE_NEWNS | sc.CLONE_NEWUTS | sc.CLONE_NEWIPC


@dataclass(frozen=True, slots=True)
class Entrance:
    """Where a payload enters: a container's spec, a pidfd of its init, how its cgroups are joined,
    user namespaces.

    ``user_fd`` is the payloads' own; ``builder_fd`` is what the container was built in by an
    unprivileged user; -1 where there is none. ``cgroup`` is the descriptor of a version 2 cgroup to
    begin in, ``joins`` are the files to which "0" is written otherwise.
    """

    spec: Spec
    pidfd: int
    joins: tuple[str, ...]
    cgroup: int
    user_fd: int
    builder_fd: int

    @property
    def descriptors(self) -> set[int]:
        """The descriptors that such a batch uses."""
        return {fd for fd in (self.pidfd, self.user_fd, self.builder_fd, self.cgroup) if fd >= 0}

    def begin(self, *, shielded: bool = True) -> tuple[SyscallBatch, Result]:
        """Begin a batch that enters from outside, and the call in it that makes the payload.

        ``shielded`` keeps the payload from being looked at until it executes a program.
        """
        flags = _OUTSIDE | sc.CLONE_NEWPID | (sc.CLONE_NEWNET if self.spec.own_network else 0)
        spaces = (self.pidfd, flags, self.builder_fd, self._user_fd)
        part, clone = _beginning(
            self.joins, self.cgroup, self.spec.ulimits, spaces, shielded=shielded
        )
        batch = SyscallBatch()
        batch.extend(part)
        return batch, clone

    def add_look(self, batch: SyscallBatch) -> None:
        """Append what a child does that looks at the container's files: enter its mounts, with the
        rights of root inside.
        """
        if self.builder_fd >= 0:
            batch.add("become the builder", "setns", self.builder_fd, sc.CLONE_NEWUSER)
        namespaces.add_enter(batch, "enter namespaces", self.pidfd, sc.CLONE_NEWNS, self._user_fd)
        left = self._kept(self.spec.capabilities | _FILE_CAPABILITIES)
        batch.add("drop capabilities", "capset", *_capability_sets(left))

    def _kept(self, wanted: int) -> int:
        """Return which of these capabilities a payload can have: all in a new user namespace, else
        the caller's.
        """
        in_new = self.builder_fd >= 0 or self._user_fd >= 0
        return wanted & (capabilities.supported() if in_new else sc.getcaps()[1])

    def add_enter(self, batch: SyscallBatch) -> None:
        """Append the whole way in, for a fork that is in the PID namespace already."""
        flags = _OUTSIDE | sc.CLONE_NEWCGROUP | (sc.CLONE_NEWNET if self.spec.own_network else 0)
        batch.extend(_entering(self.joins, self.spec.ulimits, self.pidfd, flags, self._user_fd))

    @property
    def _user_fd(self) -> int:
        return self.user_fd if self.spec.user_namespace else -1

    def add_lock_down(self, batch: SyscallBatch, user: User | None) -> None:
        """Append the giving up, for good, of all that the spec's payload may not have, and the
        change to its user.
        """
        batch.extend(self.lock_down(user))

    def lock_down(self, user: User | None) -> SyscallBatch:
        """Return the same as a batch of its own, which is ready to be run in forks."""
        is_root = (os.geteuid() == 0 or self._is_rooted) if user is None else user.uid == 0
        left = self._kept(self.spec.capabilities) if is_root else 0
        spec = self.spec
        return _locking_down(
            spec.capabilities,
            left,
            user,
            self.builder_fd >= 0,
            spec.no_new_privileges,
            filtered=spec.seccomp,
            packets=spec.packet_sockets,
        )

    @property
    def _is_rooted(self) -> bool:
        """Whether a user is root inside."""
        return self.builder_fd >= 0 and self.spec.user_namespace and not self.spec.is_on_host


@lru_cache(maxsize=16)
def _beginning(
    joins: tuple[str, ...],
    cgroup: int,
    ulimits: tuple[tuple[str, int, int], ...],
    spaces: tuple[int, int, int, int],
    *,
    shielded: bool,
) -> tuple[SyscallBatch, Result]:
    """Return what enters first: outside of the PID namespace up to the clone3, in the payload from
    there on.
    """
    pidfd, flags, builder_fd, user_fd = spaces
    batch = SyscallBatch()
    if shielded:
        add_helper_start(batch)
    if builder_fd >= 0:
        batch.add("become the builder", "setns", builder_fd, sc.CLONE_NEWUSER)
    files = [batch.open("join cgroups", os.fsencode(path), os.O_WRONLY) for path in joins]
    batch.add("enter namespaces", "setns", pidfd, flags)
    how = sc.clone_sibling_args(cgroup)
    step = "make a process in the container"
    clone = batch.add(step, "clone3", how, len(how), stop_if_positive=True)
    for file in files:
        batch.add("join cgroups", "write", file, b"0", 1)
        batch.close("join cgroups", file)
    process_limits.add_ulimits(batch, "raise ulimits", ulimits)
    namespaces.add_enter(batch, "enter namespaces", pidfd, sc.CLONE_NEWCGROUP, user_fd)
    batch.add("new session", "setsid")
    return batch, clone


# It is the same for each test of a container's spec, and costs more to put together than to make.
@lru_cache(maxsize=16)
def _entering(
    joins: tuple[str, ...],
    ulimits: tuple[tuple[str, int, int], ...],
    pidfd: int,
    flags: int,
    user_fd: int,
) -> SyscallBatch:
    batch = SyscallBatch()
    for path in joins:
        batch.write("join cgroups", os.fsencode(path), b"0")
    process_limits.add_ulimits(batch, "raise ulimits", ulimits)
    namespaces.add_enter(batch, "enter namespaces", pidfd, flags, user_fd)
    batch.add("new session", "setsid", go_on=True)  # a session leader has what it would get
    return batch


@lru_cache(maxsize=16)
def _locking_down(
    kept: int,
    left: int,
    user: User | None,
    by_user: bool,
    no_new_privileges: bool,
    *,
    filtered: bool,
    packets: bool,
) -> SyscallBatch:
    batch = SyscallBatch()
    batch.add("join a new session keyring", "keyctl", _KEYCTL_JOIN_SESSION_KEYRING, None, 0, 0, 0)
    if no_new_privileges:
        batch.add("no new privileges", "prctl", sc.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    elif (
        filtered
    ):  # then loading a filter takes CAP_SYS_ADMIN, which the end of the capabilities may take away
        _add_filter(batch, kept, packets)
    for number in range(capabilities.supported().bit_length()):
        if not kept >> number & 1:
            batch.add("drop capabilities", "prctl", sc.PR_CAPBSET_DROP, number, 0, 0, 0)
    if user is not None:
        _add_user(batch, user, by_user=by_user)
    # Without inheritable ones a program that root executes gains none past the bounding set
    # (CVE-2022-24769), and none is ambient.
    batch.add("drop capabilities", "capset", *_capability_sets(left))
    if no_new_privileges and filtered:
        _add_filter(batch, kept, packets)
    batch.prepare()
    return batch


def _capability_sets(left: int) -> tuple[bytes, bytes]:
    """Return what capset(2) takes to leave these capabilities, none of them inheritable."""
    low, high = left & 0xFFFFFFFF, left >> 32
    return struct.pack("Ii", sc.CAPABILITY_VERSION, 0), struct.pack(
        "6I", low, low, 0, high, high, 0
    )


def _add_filter(batch: SyscallBatch, kept: int, packets: bool) -> None:
    code = seccomp.program(kept, packets=packets)
    batch.add(
        "load the seccomp filter",
        "seccomp",
        _SECCOMP_SET_MODE_FILTER,
        0,
        Table((len(code) // 8, code)),
    )


def _add_user(batch: SyscallBatch, user: User, *, by_user: bool) -> None:
    groups = struct.pack(f"{len(user.groups)}I", *user.groups)
    # Without subordinate ids nobody's groups can be changed (user_namespaces(7)): what is left are
    # rights that the caller has anyway.
    batch.add("become user", "setgroups", len(user.groups), groups, go_on=by_user)
    batch.add("become user", "setresgid", user.gid, user.gid, user.gid)
    batch.add("become user", "setresuid", user.uid, user.uid, user.uid)


#: What :mod:`subprocess` restores: Python ignores these.
PYTHON_IGNORES = (signal.SIGPIPE, signal.SIGXFSZ)
