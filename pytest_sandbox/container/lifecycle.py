"""The life of a container of this process, from its creation by the launcher to its end.

What opens something and notes it runs with signals deferred, so that the container has an owner at
every moment: an exception of a signal handler (Ctrl-C, a timer) comes before or after.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Self

from pytest_sandbox.client import session
from pytest_sandbox.container import files
from pytest_sandbox.container.build_spec import describe, spec_for, with_saved
from pytest_sandbox.container.configure import configure
from pytest_sandbox.container.handle import Handle, without_init
from pytest_sandbox.container.rootfs import Rootfs
from pytest_sandbox.errors import ContainerStopped, SandboxError
from pytest_sandbox.linux import process
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.runtime.spec import OVERHEAD

if TYPE_CHECKING:
    from pytest_sandbox.client.requests import Descriptors
    from pytest_sandbox.client.snapshots import Snapshot
    from pytest_sandbox.outcome import Stats
    from pytest_sandbox.runtime.protocol import Message
    from pytest_sandbox.runtime.spec import Spec
    from pytest_sandbox.settings.settings import Settings

__all__ = ["LocalHandle", "local_handles", "prepare"]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all

#: Seconds between two looks at the processes of a container that is being closed.
_LOOK_AGAIN = 0.05
_MOST_LOOKS = 100
#: Seconds for an init to end whose launcher has died.
_PATIENCE = 10.0

#: The containers of this process that run, and in a fork those of its parent.
_open: weakref.WeakSet[LocalHandle] = weakref.WeakSet()
#: Containers to close that nothing refers to any more; finalizers append to it.
_dropped: deque[LocalHandle] = deque()


def local_handles() -> list[Handle]:
    """Return the containers of this process that run: in a fork inside a container, not those
    outside.
    """
    return [one for one in _open if one.home is session.fork_token()]


def prepare(settings: Settings) -> None:
    """Have the launcher create a container of these settings in advance, for the next start."""
    if not isinstance(settings.network, str):
        return  # the first container starts the network
    launcher = session.current()
    rootfs = Rootfs(settings)
    try:
        launcher.prewarm(spec_for(rootfs, launcher))
    finally:
        rootfs.release()


class LocalHandle(Handle):
    """The handle of a container that this process starts and closes."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._is_held = False  # whether it has descriptors and a container to close
        self._closer = 0  # the thread that closes
        self._closing = threading.Lock()
        self._replacing = threading.Lock()

    # -- start

    def start(self) -> None:
        """Start the container. Raises what :meth:`Container.start` does."""
        _close_dropped()
        self.rootfs = Rootfs(self.settings)
        try:
            self._create()
            configure(self)
            self._make_workdir()
        except BaseException:
            if self._is_held:
                self.close()
            else:
                self.rootfs.release()
            raise

    def _create(self) -> None:
        """Have the launcher create it; replace, once, a launcher that was killed since the last
        container.
        """
        try:
            self._request()
        except session.LauncherGoneError:
            self._request()

    def _request(self) -> None:
        self.launcher = session.current()
        self.launcher.hierarchy.require(self.settings)
        spec = spec_for(self.rootfs, self.launcher)
        if self.saved or self.directories:
            directories = self.rootfs.checked_mount_points(self.directories)
            spec = replace(spec, directories=directories, **with_saved(self.saved))
        self.spec = spec
        self.launcher.create(spec, describe(self.rootfs, label=self.label), self._note_created)

    def _note_created(self, created: session.CreatedContainer) -> None:
        """Become the owner of what the launcher has created; called with signals deferred."""
        self.id, self.pid, self.pidfd = created
        self.cgroup = self.launcher.session.cgroup(self.id, self.spec.limits)
        self.owner, self.home = os.getpid(), session.fork_token()
        self.state, self._is_held = "running", True
        _open.add(self)

    def _make_workdir(self) -> None:
        """Create a ``workdir`` that does not exist, as docker does; if that fails, the first
        command reports it.
        """
        if self.settings.workdir is None and (
            self.rootfs.is_host or self.rootfs.has(self.rootfs.workdir)
        ):
            return
        with suppress(OSError):
            files.make_directory(self, self.rootfs.workdir, parents=True, exist_ok=True)

    # -- use

    def ready(self) -> Self:
        """Return the handle once a process can join the container: after a commit, that takes a new
        init above the committed layer.
        """
        self.running()
        if self.state == "paused":
            raise ContainerStopped(f"the container {self.id} is paused. Call unpause() first.")
        if self.committed is not None:
            with self._replacing:
                if self.committed is not None:  # no other thread was faster
                    self._replace_init(self.committed)
        return self

    def _replace_init(self, committed: Snapshot) -> None:
        """Start an init with a new layer above the committed one, with the same cgroup, name and
        address.
        """
        spec = replace(self.spec, above=(*committed.above, *self.spec.above), saved=())
        note = partial(self._note_replaced, spec, committed)
        self.launcher.renew({"op": "renew", "id": self.id, "spec": spec.to_json()}, note)
        configure(self)

    def _note_replaced(
        self, spec: Spec, committed: Snapshot, answer: Message, fds: Descriptors
    ) -> None:
        os.close(self.pidfd)
        self.pidfd, self.pid = fds.take(), answer["pid"]
        self.snapshots.append(committed)
        self.spec, self.committed = spec, None

    def descriptors(self) -> list[int]:
        """Return the descriptors of the container in this process."""
        relays = [one.channel for one in (self.published, self.egress) if one is not None]
        files = self.cgroup.files.descriptors()
        held = (self.pidfd, self.cgroup.open_fd(), self.rootfs.held, *files, *relays)
        kept = [fd for log in self.logs for fd in log.descriptors()]
        return [fd for fd in (*held, *(fork.pidfd for fork in self.forks), *kept) if fd >= 0]

    def user_namespaces(self) -> tuple[int, int]:
        """Return descriptors of the user namespace of commands, and of the builder's; or -1."""
        return self.launcher.user_namespace_for(self.spec), self.launcher.builder_fd

    def figures(self) -> Stats:
        """Return what the cgroup counts, without the pressure."""
        return without_init(self.running().cgroup.stats(), self.settings)

    def request_layer(self) -> tuple[Message, Descriptors]:
        """Ask the launcher for the writable layer."""
        return self.launcher.request({"op": "layer", "id": self.id})

    # -- end

    def close(self) -> None:
        """Kill what runs inside, wait for its end, and discard the writable layer; also those of
        containers that nothing refers to any more.
        """
        self._close()
        _close_dropped()

    def _close(self) -> None:
        try:
            if self._begin_close():
                self._end_processes()
        finally:
            if self._closer == threading.get_ident():
                self._release()

    def _begin_close(self) -> bool:
        """Make this thread the one that closes; return whether there are processes to end."""
        with self._closing:
            if self.state == "stopped":  # perhaps an interrupt has ended this thread's first try
                return self._is_held and self._closer == threading.get_ident()
            if self.state == "created":
                self.state = "stopped"
                return False
            was_paused = self.state == "paused"
            self.state, self._closer = "stopped", threading.get_ident()
        _open.discard(self)
        if self._is_elsewhere():
            return False
        if was_paused:
            with suppress(OSError):  # its processes have ended, and its cgroup with them
                self.cgroup.thaw()
        return True

    def _is_elsewhere(self) -> bool:
        """Return whether this is a fork of the process that owns the container."""
        return os.getpid() != self.owner or self.home is not session.fork_token()

    def _release(self) -> None:
        """Release everything that the container holds, once, whatever has interrupted its end."""
        with Deferred():
            is_held, self._is_held, self._closer = self._is_held, False, 0
            if is_held and not self._is_elsewhere():
                try:
                    for relay in (self.published, self.egress):
                        if relay is not None:  # before the device of its network goes
                            relay.close()
                    self._tell_closed()
                    if self.endpoint is not None:
                        self.endpoint.network.detach(self.endpoint)
                finally:
                    self.rootfs.release()
                    self.cgroup.close()
                    os.close(self.pidfd)
                    for log in self.logs:
                        log.close()

    def _tell_closed(self) -> None:
        try:
            self.launcher.tell(
                {"op": "closed", "id": self.id, "has_unused_network": not self._uses_network()}
            )
        except SandboxError:  # the launcher has died, and init with it
            process.ended(self.pidfd, _PATIENCE)
            with suppress(OSError):
                self.cgroup.remove()
        if self.snapshot_key:
            self.launcher.snapshots.unused.append(self.snapshot_key)

    def _uses_network(self) -> bool:
        """Return whether this process has changed the container's network namespace."""
        used = (self.endpoint, self.published, self.egress)
        return self.is_disconnected or any(one is not None for one in used)

    def _end_processes(self) -> None:
        """Kill what runs inside, and wait for its end.

        Init alone is not waited for: the launcher ends it in its own time.
        """
        if not self.commands and not self.forks and self.cgroup.task_count() == OVERHEAD:
            return
        process.kill(self.pidfd, signal.SIGKILL)
        with self.cgroup.unthrottled():
            # They are children of this process, and a PID namespace ends only when its processes
            # have been reaped (pid_namespaces(7)).
            for command in list(self.commands):
                command.await_end()
            for child in list(self.forks):
                child.reap()
            looks = 0
            while (
                not process.ended(self.pidfd, _LOOK_AGAIN)
                and looks < _MOST_LOOKS
                and (self.cgroup.pids() or self.cgroup.task_count() is None)
            ):
                # With no process left alive, zombies of another process that does not reap them
                # keep init from ending. Without cgroups (task_count() is None) that is not known.
                looks += 1

    def __del__(self) -> None:
        """Kill what runs inside, and leave the rest to the next start or close: a finalizer may run
        within any call, so it takes no lock.
        """
        if getattr(self, "_is_held", False) and not self._is_elsewhere():
            process.kill(self.pidfd, signal.SIGKILL)
            _dropped.append(self)


@atexit.register
def _close_all() -> None:
    """Close all open containers before the launcher ends: it waits for its containers, and they for
    the commands of this process.
    """
    for handle in list(_open):
        handle.close()
    _close_dropped()


def _close_dropped() -> None:
    """Close the containers that nothing refers to any more; called while no lock is held."""
    while _dropped:
        handle = _dropped[0]  # removed once it is closed: an interrupt may come at any moment
        with suppress(SandboxError, OSError):
            handle._close()  # noqa: SLF001 - its own
        with suppress(ValueError):  # another thread was faster
            _dropped.remove(handle)
