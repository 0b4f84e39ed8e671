"""The life of a container: from the launcher's hands to its end, so that it has an owner at every
moment, whatever interrupts.
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
from typing import TYPE_CHECKING, Self, cast

from pytest_sandbox.client import session
from pytest_sandbox.container.build_spec import about, spec_for, with_kept
from pytest_sandbox.container.rootfs import Rootfs
from pytest_sandbox.container.state import State
from pytest_sandbox.errors import ContainerStopped, SandboxError
from pytest_sandbox.linux import process
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.runtime.spec import OVERHEAD

if TYPE_CHECKING:
    from pytest_sandbox.container.container import Container

__all__ = ["Lifecycle", "held_here"]

__tracebackhide__ = (
    True  # pytest shows the line of the test that asked, not ours; --full-trace shows all
)

#: Seconds between two looks at who still lives in a container that is being closed.
_LOOK_AGAIN = 0.05
_MOST_LOOKS = 100
#: Seconds for the init of a launcher that has died to end.
_PATIENCE = 10.0

#: The containers of this process that run.
held_here: weakref.WeakSet[Container] = weakref.WeakSet()
#: Containers that nobody has any more, and that were not closed; appended to by finalizers.
_dropped: deque[Lifecycle] = deque()


class Lifecycle(State):
    """The methods of :class:`~pytest_sandbox.container.Container` that start and end it."""

    _pid: int
    _state: str
    _owner: int
    _home: object
    _launcher: session.LauncherClient
    _closing: threading.Lock
    _closer: int
    _is_held: bool

    def start(self) -> Self:
        """Start the container; returns it. A container starts once."""
        if self._state != "created":
            raise ContainerStopped(
                f"{self._called} is {self.status}: it starts once. Make a new one."
            )
        _close_dropped()
        self.rootfs = Rootfs(self.settings)
        try:
            self._create()
            self._settle()
        except BaseException:
            self._abort()
            raise
        return self

    def _settle(self) -> None:
        """Give what was made for anybody what no spec says: a name, a place on a network, a working
        directory.
        """
        raise NotImplementedError

    def _create(self) -> None:
        """Have the launcher make it; one that was killed since the last container is replaced,
        once.
        """
        try:
            self._ask_launcher()
        except session.LauncherGoneError:
            self._ask_launcher()

    def _ask_launcher(self) -> None:
        self._launcher = session.current()
        self._launcher.hierarchy.require(self.settings)
        spec = spec_for(self.rootfs, self._launcher)
        self.spec = (
            replace(
                spec, directories=self.rootfs.with_way(self.directories), **with_kept(self.kept)
            )
            if self.kept or self.directories
            else spec
        )
        self._launcher.create(self.spec, about(self.rootfs, label=self.label), self._adopt)

    def _adopt(self, made: session.Ready) -> None:
        """Become the owner of what the launcher has made; called with signals deferred, so that it
        has an owner at every moment.
        """
        self.id, self._pid, self.pidfd = made
        self.cgroup = self._launcher.session.cgroup(self.id, self.settings)
        self._owner, self._home = os.getpid(), session.home()
        self._state, self._is_held = "running", True
        held_here.add(cast("Container", self))

    def _abort(self) -> None:
        """Close what an error or an interrupt has left of a start."""
        if self._is_held:
            self.close()
        else:
            self.rootfs.release()

    def close(self) -> None:
        """Kill what runs inside, wait until it is dead, and throw everything away.

        Closing twice is fine.
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
        """Take the closing upon this thread; return whether there is something to wait for."""
        with self._closing:
            if self._state == "stopped":
                return (
                    self._is_held and self._closer == threading.get_ident()
                )  # an interrupt has ended the first try
            if self._state == "created":
                self._state = "stopped"
                return False
            was_paused = self._state == "paused"
            self._state, self._closer = "stopped", threading.get_ident()
        held_here.discard(cast("Container", self))
        if self._is_elsewhere():
            return False
        if was_paused:
            with suppress(OSError):  # its processes have ended, and its cgroup with them
                self.cgroup.thaw()
        return True

    def _is_elsewhere(self) -> bool:
        """Whether this is a fork of the process that the container belongs to."""
        return os.getpid() != self._owner or self._home is not session.home()

    def _release(self) -> None:
        """Let go of everything that the container holds, once, whatever has interrupted its end."""
        with Deferred():
            is_held, self._is_held, self._closer = self._is_held, False, 0
            if is_held and not self._is_elsewhere():
                try:
                    self._tell_closed()
                    if self.endpoint is not None:
                        self.endpoint.network.detach(self.endpoint)
                finally:
                    self.rootfs.release()
                    self.cgroup.close()
                    os.close(self.pidfd)

    def _tell_closed(self) -> None:
        try:
            self._launcher.tell({"op": "closed", "id": self.id})
        except SandboxError:  # it has died, and init with it
            process.ended(self.pidfd, _PATIENCE)
            with suppress(OSError):
                self.cgroup.remove()
        if self.freezing:
            self._launcher.snapshots.unused.append(self.freezing)

    def _end_processes(self) -> None:
        """Kill what runs inside, and wait for it.

        Init alone is no reason to wait: the launcher ends it in its own time.
        """
        if not self.commands and not self.children and self.cgroup.task_count() == OVERHEAD:
            return
        process.kill(self.pidfd, signal.SIGKILL)
        with self.cgroup.unthrottled():
            for command in list(
                self.commands
            ):  # they are this process's children: the namespace ends when they are reaped
                command.await_end()
            for child in list(self.children):
                child.reap()
            looks = 0
            while (
                not process.ended(self.pidfd, _LOOK_AGAIN)
                and looks < _MOST_LOOKS
                and (self.cgroup.pids() or self.cgroup.task_count() is None)
            ):
                # what is left once nobody lives are the dead of a visitor that does not reap them;
                # without cgroups nobody knows
                looks += 1

    def __del__(self) -> None:
        """Kill what runs inside, and leave the rest to the next start or close: a finalizer may run
        within any call, and takes no lock.
        """
        if getattr(self, "_is_held", False) and not self._is_elsewhere():
            process.kill(self.pidfd, signal.SIGKILL)
            _dropped.append(self)

    @property
    def status(self) -> str:
        """What it is: "created", "running", "paused" or "stopped", also where its init was killed
        from outside.
        """
        alive = self._state in {"running", "paused"}
        if alive and self._home is not session.home():  # this is a fork inside
            return "stopped"
        renewable = self.taken is not None  # its old init does not matter any more
        return (
            "stopped" if alive and not renewable and process.ended(self.pidfd, 0) else self._state
        )


@atexit.register
def _close_living() -> None:
    """Close what was left open, before the launcher ends: it waits for containers, and they for the
    commands of this process.
    """
    for container in list(held_here):
        container.close()
    _close_dropped()


def _close_dropped() -> None:
    """Close the containers that nobody has any more; called where no lock is held."""
    while _dropped:
        container = _dropped[0]  # taken off once it is closed: an interrupt may come at any moment
        with suppress(SandboxError, OSError):
            container._close()  # noqa: SLF001 - its own
        with suppress(ValueError):  # another thread was faster
            _dropped.remove(container)
