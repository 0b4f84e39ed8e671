"""How a process joins a container: the same steps for a command and for a fork of a test's process.

A payload joins the cgroups, enters the namespaces, the user namespace last, and gets a session and
a session keyring of its own. Then it is confined: no_new_privs, the user, capabilities, seccomp.
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

__all__ = ["PYTHON_IGNORES", "RAISE_ULIMITS", "START_TIMEOUT", "JoinTarget"]

_KEYCTL_JOIN_SESSION_KEYRING = 1  # <linux/keyctl.h>
_SECCOMP_SET_MODE_FILTER = 1  # <linux/seccomp.h>

#: The step that sets a payload's ulimits.
RAISE_ULIMITS = "raise ulimits"
#: Seconds until a command must have been executed, where its caller gives no timeout: other
#: processes in the container may stop it, or take all CPU time.
START_TIMEOUT = 60.0
#: The signals that Python ignores and :mod:`subprocess` restores for a command.
PYTHON_IGNORES = (signal.SIGPIPE, signal.SIGXFSZ)
#: What access to the container's files from outside takes besides the payloads' capabilities: root
#: inside has it for its own files.
_FILE_CAPABILITIES = sum(
    map(capabilities.bit, ("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID"))
)
_BECOME_BUILDER = "enter the builder's user namespace"
_ENTER = "enter namespaces"
_JOIN_CGROUPS = "join cgroups"
_DROP = "drop capabilities"
_OUTSIDE = sc.CLONE_NEWNS | sc.CLONE_NEWUTS | sc.CLONE_NEWIPC


@dataclass(frozen=True, slots=True)
class JoinTarget:
    """The container that a process joins: its spec, a pidfd of its init, cgroups, user namespaces.

    ``cgroup`` is the descriptor of a cgroup v2 to start in, ``cgroup_files`` are the files to which
    a process writes "0" to join cgroups otherwise. ``user_fd`` is the payloads' user namespace,
    ``builder_fd`` the one in which an unprivileged user's container was created. Each descriptor is
    -1 if there is none.
    """

    spec: Spec
    pidfd: int
    cgroup_files: tuple[str, ...]
    cgroup: int
    user_fd: int
    builder_fd: int

    @property
    def descriptors(self) -> set[int]:
        """The descriptors that a batch which joins uses."""
        return {fd for fd in (self.pidfd, self.user_fd, self.builder_fd, self.cgroup) if fd >= 0}

    def begin(self, *, shielded: bool = True) -> tuple[SyscallBatch, Result]:
        """Return a batch that joins from outside, and its call that makes the payload.

        ``shielded`` starts with the spawn helper: processes in the container cannot look at a
        process with the caller's memory before it executes its batch (CVE-2016-9962).
        """
        flags = _OUTSIDE | sc.CLONE_NEWPID | (sc.CLONE_NEWNET if self.spec.own_network else 0)
        spaces = (self.pidfd, flags, self.builder_fd, self._user_fd)
        part, clone = _beginning(
            self.cgroup_files, self.cgroup, self.spec.ulimits, spaces, shielded=shielded
        )
        batch = SyscallBatch()
        batch.extend(part)
        return batch, clone

    def add_file_access(self, batch: SyscallBatch) -> None:
        """Append what a child does before it uses the container's files: enter the mount
        namespace, with the rights of root inside.
        """
        if self.builder_fd >= 0:
            batch.add(_BECOME_BUILDER, "setns", self.builder_fd, sc.CLONE_NEWUSER)
        namespaces.add_enter(batch, _ENTER, self.pidfd, sc.CLONE_NEWNS, self._user_fd)
        remaining = self._available(self.spec.capabilities | _FILE_CAPABILITIES)
        batch.add(_DROP, "capset", *_capability_sets(remaining))

    def add_join(self, batch: SyscallBatch) -> None:
        """Append all steps of joining, for a fork that is in the PID namespace already."""
        flags = _OUTSIDE | sc.CLONE_NEWCGROUP | (sc.CLONE_NEWNET if self.spec.own_network else 0)
        batch.extend(
            _joining(self.cgroup_files, self.spec.ulimits, self.pidfd, flags, self._user_fd)
        )

    def add_confinement(self, batch: SyscallBatch, user: User | None) -> None:
        """Append the steps of :meth:`confinement`."""
        batch.extend(self.confinement(user))

    def confinement(self, user: User | None) -> SyscallBatch:
        """Return a batch, ready to be run in forks, that changes to ``user`` and gives up for
        good what the spec's payloads may not have.
        """
        spec = self.spec
        is_root = (os.geteuid() == 0 or self._is_mapped_root) if user is None else user.uid == 0
        return _confinement(
            spec.capabilities,
            self._available(spec.capabilities) if is_root else 0,
            user,
            self.builder_fd >= 0,
            spec.no_new_privileges,
            filtered=spec.seccomp,
            packets=spec.packet_sockets,
        )

    def _available(self, wanted: int) -> int:
        """Return those of the capabilities that a payload can have: all in a new user namespace,
        else the caller's.
        """
        is_new = self.builder_fd >= 0 or self._user_fd >= 0
        return wanted & (capabilities.supported() if is_new else sc.getcaps()[1])

    @property
    def _user_fd(self) -> int:
        return self.user_fd if self.spec.user_namespace else -1

    @property
    def _is_mapped_root(self) -> bool:
        """Whether an unprivileged user is root inside."""
        return self.builder_fd >= 0 and self.spec.user_namespace and not self.spec.is_on_host


# The batches below are the same for all payloads of a container, and cost more to put together
# than to run.
@lru_cache(maxsize=16)
def _beginning(
    cgroup_files: tuple[str, ...],
    cgroup: int,
    ulimits: tuple[tuple[str, int, int], ...],
    spaces: tuple[int, int, int, int],
    *,
    shielded: bool,
) -> tuple[SyscallBatch, Result]:
    """Return the first steps: outside of the PID namespace up to clone3(2), in the payload after
    it.
    """
    pidfd, flags, builder_fd, user_fd = spaces
    batch = SyscallBatch()
    if shielded:
        add_helper_start(batch)
    if builder_fd >= 0:
        batch.add(_BECOME_BUILDER, "setns", builder_fd, sc.CLONE_NEWUSER)
    files = [batch.open(_JOIN_CGROUPS, os.fsencode(path), os.O_WRONLY) for path in cgroup_files]
    batch.add(_ENTER, "setns", pidfd, flags)
    how = sc.clone_sibling_args(cgroup)
    step = "make a process in the container"
    clone = batch.add(step, "clone3", how, len(how), stop_if_positive=True)
    for file in files:
        batch.add(_JOIN_CGROUPS, "write", file, b"0", 1)
        batch.close(_JOIN_CGROUPS, file)
    process_limits.add_ulimits(batch, RAISE_ULIMITS, ulimits)
    # The user namespace is the last: after it, the process may not enter the others.
    namespaces.add_enter(batch, _ENTER, pidfd, sc.CLONE_NEWCGROUP, user_fd)
    batch.add("new session", "setsid")
    return batch, clone


@lru_cache(maxsize=16)
def _joining(
    cgroup_files: tuple[str, ...],
    ulimits: tuple[tuple[str, int, int], ...],
    pidfd: int,
    flags: int,
    user_fd: int,
) -> SyscallBatch:
    batch = SyscallBatch()
    for path in cgroup_files:
        batch.write(_JOIN_CGROUPS, os.fsencode(path), b"0")
    process_limits.add_ulimits(batch, RAISE_ULIMITS, ulimits)
    namespaces.add_enter(batch, _ENTER, pidfd, flags, user_fd)
    batch.add("new session", "setsid", go_on=True)  # EPERM for a session leader: setsid(2)
    return batch


@lru_cache(maxsize=16)
def _confinement(
    bounding: int,
    remaining: int,
    user: User | None,
    is_rootless: bool,
    no_new_privileges: bool,
    *,
    filtered: bool,
    packets: bool,
) -> SyscallBatch:
    batch = SyscallBatch()
    batch.add("join a new session keyring", "keyctl", _KEYCTL_JOIN_SESSION_KEYRING, None, 0, 0, 0)
    if no_new_privileges:
        batch.add("no new privileges", "prctl", sc.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    elif filtered:
        # seccomp(2) then takes CAP_SYS_ADMIN, which the process may lose below.
        _add_filter(batch, bounding, packets)
    for number in range(capabilities.supported().bit_length()):
        if not bounding >> number & 1:
            batch.add(_DROP, "prctl", sc.PR_CAPBSET_DROP, number, 0, 0, 0)
    if user is not None:
        _add_user(batch, user, is_rootless=is_rootless)
    # Inheritable capabilities would let a program that root executes gain some beyond the bounding
    # set (CVE-2022-24769).
    batch.add(_DROP, "capset", *_capability_sets(remaining))
    if no_new_privileges and filtered:
        _add_filter(batch, bounding, packets)
    batch.prepare()
    return batch


def _capability_sets(remaining: int) -> tuple[bytes, bytes]:
    """Return the arguments of capset(2) that leave these capabilities, none of them inheritable."""
    low, high = remaining & 0xFFFFFFFF, remaining >> 32
    header = struct.pack("Ii", sc.CAPABILITY_VERSION, 0)
    return header, struct.pack("6I", low, low, 0, high, high, 0)


def _add_filter(batch: SyscallBatch, bounding: int, packets: bool) -> None:
    code = seccomp.program(bounding, packets=packets)
    table = Table((len(code) // 8, code))  # struct sock_fprog
    batch.add("load the seccomp filter", "seccomp", _SECCOMP_SET_MODE_FILTER, 0, table)


def _add_user(batch: SyscallBatch, user: User, *, is_rootless: bool) -> None:
    step, groups = "become user", struct.pack(f"{len(user.groups)}I", *user.groups)
    # Without subordinate GIDs setgroups(2) is denied (user_namespaces(7)). What remains are groups
    # of the caller, which gives the payload no right that the caller lacks.
    batch.add(step, "setgroups", len(user.groups), groups, go_on=is_rootless)
    batch.add(step, "setresgid", user.gid, user.gid, user.gid)
    batch.add(step, "setresuid", user.uid, user.uid, user.uid)
