"""How a container is created: the steps from a spec to a list of system calls, and to PID 1.

The system calls are made by a child of the launcher that is in the container's new namespaces and
not yet in its root. For root this order matters: the child is outside of the payloads' user
namespace, so it may mount; payloads are in a user namespace that does not own the mounts, so they
cannot undo them, whatever their capabilities (mount_namespaces(7)).
"""

from __future__ import annotations

import errno
import os
import select
import signal
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from pytest_sandbox.linux import (
    mounts,
    namespaces,
    network_namespace,
    process,
    process_limits,
)
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.cgroup.view import add_view
from pytest_sandbox.linux.repeatable_batch import RepeatableBatch
from pytest_sandbox.linux.syscall_batch import Result, Table
from pytest_sandbox.runtime.protocol import ErrorCode
from pytest_sandbox.runtime.root_mounts import ROOT, RootMounts
from pytest_sandbox.runtime.step_error import StepError
from pytest_sandbox.runtime.volumes import Volumes

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.linux.cgroup.view import ShownCgroup
    from pytest_sandbox.linux.syscall_batch import Failure
    from pytest_sandbox.runtime.host_resources import HostResources
    from pytest_sandbox.runtime.spec import Spec

__all__ = ["ContainerBuilder", "Created"]

_NAMESPACES = sc.CLONE_NEWNS | sc.CLONE_NEWPID | sc.CLONE_NEWIPC | sc.CLONE_NEWUTS
_RAISE_ULIMITS = "raise ulimits"
_PROCESS_NAME = b"pytest-sandbox-init"


class Created(NamedTuple):
    """A new container: its init's PID and pidfd, and descriptors of what is freed when it ends."""

    pid: int
    pidfd: int
    #: The layer's directory.
    layer: int
    #: A clone of the layer's mount (open_tree(2)), which can be mounted again elsewhere.
    layer_mount: int
    #: The mount namespace. While it is held, init ends at once: the kernel would free the mounts,
    #: and the inodes of all files that were used inside, in the last process that leaves it.
    mount_namespace: int


class ContainerBuilder:
    """The list of system calls that creates one container; each step is a method.

    ``network`` is a descriptor of the network namespace to enter, or -1 to make one if the spec
    has its own. ``cgroup_files`` are what a process writes to join the container's cgroups,
    ``shown_cgroups`` what it has at /sys/fs/cgroup; ``held_layers`` are detached mounts of the
    committed layers that it is based on, by their keys.
    """

    def __init__(
        self,
        spec: Spec,
        host: HostResources,
        *,
        hostname: str,
        network: int,
        cgroup_files: tuple[str, ...],
        held_layers: dict[str, int],
        shown_cgroups: tuple[ShownCgroup, ...] = (),
    ) -> None:
        self._spec = spec
        self._host = host
        self._hostname = hostname
        self._has_steps = False
        self._cgroup_files = cgroup_files
        self._shown_cgroups = shown_cgroups
        self._network = network
        self._batch = RepeatableBatch()
        self._volumes = Volumes(self._batch, spec)
        self._root = RootMounts(self._batch, spec, host, hostname=hostname, held_layers=held_layers)
        self._opened_cgroup_files: list[Result] = []
        self._entered_network = self._last = Result(0)
        self.file_stamps = self._root.file_stamps

    def build(self, cgroup: int = -1) -> Created:
        """Create the container; ``cgroup`` is a descriptor of the cgroup v2 to start in, if any.

        Raises :class:`StepError`, or :class:`OSError` for what the host lacks.
        """
        if not self._has_steps:
            for step in self._steps():
                step()
            self._has_steps = True
        return self._spawn(cgroup)

    def is_for(self, spec: Spec) -> bool:
        """Return whether the list of calls that :meth:`build` has run creates another container of
        a spec, if it is told its names by :meth:`rename`.
        """
        return spec == self._spec and self._root.is_reusable() and self._root.is_current()

    def rename(
        self,
        hostname: str,
        network: int,
        cgroup_files: tuple[str, ...],
        shown_cgroups: tuple[ShownCgroup, ...],
    ) -> bool:
        """Put the names of another container into the list of calls; return whether that is
        possible: they differ from the last one's in nothing but the host name, which is as long.
        """
        old, new = self._hostname, hostname
        names = [
            (*cgroup_files, *(one.directory for one in shown_cgroups)),
            (*self._cgroup_files, *(one.directory for one in self._shown_cgroups)),
        ]
        if (
            len(old) != len(new)
            or (network < 0) != (self._network < 0)
            or [name.replace(new, old) for name in names[0]] != list(names[1])
        ):
            return False
        self._batch.rename(old.encode(), new.encode())
        if network >= 0:
            self._batch.set_argument(self._entered_network, 0, network)
        self._hostname, self._network = hostname, network
        self._cgroup_files, self._shown_cgroups = cgroup_files, shown_cgroups
        return True

    def _steps(self) -> tuple[Callable[[], None], ...]:
        return (
            self._detach,
            self._enter_network,
            self._open_cgroup_files,
            self._volumes.open,
            self._root.make_layer,
            self._root.attach_held_layers,
            self._root.mount_root,
            self._root.mount_below,
            self._root.mount_own,
            self._show_cgroups,
            self._root.become_root,
            self._volumes.attach,
            self._root.make_read_only,
            self._root.add_check,
            self._set_hostname,
            self._join_cgroups,
            self._become_init,
        )

    def _detach(self) -> None:
        step = "make private"
        # Init must outlive a payload that is out of memory: proc_pid_oom_score_adj(5).
        process_limits.add_oom_score_adj(self._batch, "detach")
        process_limits.add_raised_hard_limits(self._batch, _RAISE_ULIMITS, self._spec.ulimits)
        # From here on neither the host nor the container sees the other's new mounts.
        mounts.add_private(self._batch, step)
        # The modes given to mkdir(2) and mknod(2) below are exact, whatever the caller's umask.
        self._batch.add(step, "umask", 0)

    def _enter_network(self) -> None:
        step = "enter network"
        if self._network >= 0:
            self._entered_network = self._batch.add(step, "setns", self._network, sc.CLONE_NEWNET)
        elif self._spec.own_network:
            network_namespace.add_network(self._batch, step)

    def _open_cgroup_files(self) -> None:
        # Now, as their paths do not exist in the new root.
        self._opened_cgroup_files = [
            self._batch.open("open cgroups", os.fsencode(path), os.O_WRONLY)
            for path in self._cgroup_files
        ]

    def _show_cgroups(self) -> None:
        shown = self._shown_cgroups
        add_view(self._batch, ROOT, self._host.cgroup_points(shown), shown)

    def _set_hostname(self) -> None:
        # The id: a prewarmed container gets the name that was asked for when it is claimed.
        name = self._hostname.encode()
        self._batch.add("set host name", "sethostname", name, len(name))

    def _join_cgroups(self) -> None:
        step = "join cgroups"
        for fd in self._opened_cgroup_files:
            self._batch.add(step, "write", fd, b"0", 1)
            self._batch.close(step, fd)
        self._batch.add(step, "unshare", sc.CLONE_NEWCGROUP)

    def _become_init(self) -> None:
        """Execute the program that sleeps as PID 1 and dies with the launcher."""
        step, batch = "become init", self._batch
        # Init reaps no child: the kernel does while SIGCHLD is ignored (wait(2), NOTES).
        batch.ignore_sigchld(step)
        batch.restore_signals(step)
        batch.add(step, "prctl", sc.PR_SET_PDEATHSIG, signal.SIGKILL)
        # If the launcher died before that prctl(2), the signal never comes: end here.
        launcher_ended = struct.pack("=ihh", self._host.launcher, select.POLLIN, 0)  # pollfd
        batch.add(step, "ppoll", launcher_ended, 1, bytes(16), None, 0, stop_if_positive=True)
        arguments, environment = Table((_PROCESS_NAME, 0)), Table((0,))
        self._last = batch.add(
            step, "execveat", self._host.init, b"", arguments, environment, sc.AT_EMPTY_PATH
        )

    def _spawn(self, cgroup: int) -> Created:
        batch = self._batch
        pid, pidfd = batch.spawn(_NAMESPACES | sc.CLONE_FILES, cgroup=cgroup)
        failure = batch.failure()
        if failure is None and not batch.ended_early(self._last):
            layer, layer_mount = batch[self._root.layer], batch[self._root.layer_mount]
            return self._verified(Created(pid, pidfd, layer, layer_mount, -1))
        os.waitpid(pid, 0)
        os.close(pidfd)
        batch.close_leaks()
        raise self._error(failure)

    def _error(self, failure: Failure | None) -> StepError:
        """Return the error for a call that failed, or for a child that was killed."""
        if failure is None:
            reason = "the process was killed while it created the container: is memory= too low?"
            return StepError("create", errno.EINTR, reason)
        reason, code = str(failure.error().strerror), ErrorCode.STEP_FAILED
        if failure.step == _RAISE_ULIMITS:
            reason = process_limits.describe_hard_limits_to_raise(self._spec.ulimits)
            code = ErrorCode.ULIMIT_TOO_HIGH
        elif failure.step == mounts.MOUNT_OWN and failure.errno in {errno.EPERM, errno.EACCES}:
            # mount_namespaces(7): a new proc would show what mounts over the old one hide.
            code = ErrorCode.PROC_COVERED
        return StepError(failure.step, failure.errno, reason, code=code)

    def _verified(self, created: Created) -> Created:
        """Return the container with its mount namespace, or kill it unless processes that join it
        get its overlay as their root.

        Nothing but init has run in it yet.
        """
        if self._root.is_verified():
            namespace = -1
            with suppress(OSError):  # init was killed meanwhile: its pidfd says so
                namespace = namespaces.open_namespace(created.pid, "mnt")
            return created._replace(mount_namespace=namespace)
        process.kill(created.pidfd, signal.SIGKILL)
        os.waitpid(created.pid, 0)
        for fd in (created.pidfd, created.layer, created.layer_mount):
            os.close(fd)
        reason = "a process that joins the container would not be in its root"
        raise StepError("verify the root", errno.EXDEV, reason)
