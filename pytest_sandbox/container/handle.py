"""The state of one container, shared by the files of this package.

:class:`~pytest_sandbox.Container` holds a :class:`Handle`, and passes it to functions that do the
work. There are two kinds: the handle of a container of this process
(:mod:`pytest_sandbox.container.lifecycle`), and that of a container of another process
(:mod:`pytest_sandbox.container.remote`).
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, Self

from pytest_sandbox.client import session
from pytest_sandbox.errors import ContainerStopped
from pytest_sandbox.linux import process
from pytest_sandbox.runtime.spec import OVERHEAD

if TYPE_CHECKING:
    from pytest_sandbox.client.requests import Descriptors
    from pytest_sandbox.client.snapshots import Snapshot
    from pytest_sandbox.container.kept_log import KeptLog
    from pytest_sandbox.container.network import Endpoint
    from pytest_sandbox.container.relay import Egress, Published
    from pytest_sandbox.container.rootfs import Rootfs
    from pytest_sandbox.linux.cgroup import Cgroup
    from pytest_sandbox.outcome import Stats
    from pytest_sandbox.runtime.protocol import Message
    from pytest_sandbox.runtime.spec import Spec
    from pytest_sandbox.settings.settings import Settings

__all__ = ["Command", "Fork", "Handle", "without_init"]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all

_OTHER_PROCESS = (
    "a process inside a container cannot use it. Keep the test outside (no_sandbox), or start the "
    "container inside."
)


class Command(Protocol):
    """A command of this process that runs in a container."""

    kept_log: KeptLog | None

    def poll(self) -> int | None:
        """Return the exit status; None while the command runs."""

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when the command has ended; or -1."""

    def await_end(self) -> None:
        """Wait until a command that was killed has ended."""

    def send_signal(self, sig: int) -> None:
        """Send a signal to the command."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, at most ``timeout`` seconds; return the exit status."""


class Fork(Protocol):
    """A fork of this process that runs in a container."""

    pidfd: int

    def reap(self) -> None:
        """Kill the fork and take its exit status."""


class Handle:
    """A container as the files of this package see it: its names, its state, its descriptors."""

    settings: Settings
    """The settings of the container."""

    id: str
    """The id, which is also the host name unless ``hostname`` is set; empty before the start."""

    label: str
    """The name that people see beside the id (a test's name, ``--name``); set before the start."""

    state: str
    """"created", "running", "paused" or "stopped", as far as this process has changed it."""

    pid: int
    """The PID of init outside; from the start on."""

    pidfd: int
    """A pidfd of init; from the start on."""

    owner: int
    """The PID of the process that started the container; from the start on."""

    home: object
    """What :func:`session.fork_token` returned at the start: another object in a fork inside."""

    launcher: session.LauncherClient
    """The launcher that created the container; from the start on."""

    rootfs: Rootfs
    """The image or the host's root below the writable layer; from the start on."""

    cgroup: Cgroup
    """The cgroup; from the start on."""

    spec: Spec
    """What the launcher was asked to create; from the start on."""

    endpoint: Endpoint | None
    """The place on a :class:`~pytest_sandbox.Network`; None without one, and before the start."""

    is_disconnected: bool
    """Whether it was disconnected from the network of its settings."""

    publishes_later: bool
    """Whether the start only starts the relay of its ports, which are published while a service
    inside starts."""

    connects_later: bool
    """Whether the start does not connect it to the network of its settings: a service that was
    started in advance gets its place when it is used."""

    published: Published | None
    """The relay of published ports; None without any, and before the start."""

    egress: Egress | None
    """The forwarder of outgoing connections; None without one, and before the start."""

    saved: dict[str, str]
    """Directories whose content the writable layer starts with, by mount point
    (:mod:`pytest_sandbox.container.saved_layers`); set before the start."""

    directories: tuple[str, ...]
    """Directories of the host that are mounted over an image at the same paths, each below a
    writable layer; set before the start."""

    snapshots: list[Snapshot]
    """The committed layers of this container that its writable layer lies on, oldest first."""

    committed: Snapshot | None
    """The writable layer after a commit, until something is done in the container again."""

    snapshot_key: str
    """The key of the writable layer in the layer holder, from the request for it until
    :attr:`committed` has it; else empty."""

    commands: set[Command]
    """The commands of this process that have not ended."""

    forks: set[Fork]
    """The forks of this process that were not waited for."""

    logs: list[KeptLog]
    """The kept output of commands of this process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.id = self.label = self.snapshot_key = ""
        self.state = "created"
        self.endpoint = self.committed = self.published = self.egress = None
        self.is_disconnected = self.publishes_later = self.connects_later = False
        self.saved, self.directories, self.snapshots = {}, (), []
        self.commands, self.forks = set(), set()
        self.logs = []

    @property
    def name(self) -> str:
        """What error messages call the container."""
        return f"the container {self.id}" if self.id else "the container"

    @property
    def hostname(self) -> str:
        """The host name inside: the first of ``hostname``, else the id."""
        return self.settings.names[0] if self.settings.names else self.id

    @property
    def workdir(self) -> str:
        """The directory in which commands start: ``workdir``; else the caller's working directory
        on the host's root, and the image's on an image.
        """
        return self.running().rootfs.workdir

    @property
    def status(self) -> str:
        """The state now: "stopped" also if init was killed from outside."""
        is_alive = self.state in {"running", "paused"}
        if is_alive and self.home is not session.fork_token():  # in a fork inside a container
            return "stopped"
        if is_alive and self.committed is None and process.ended(self.pidfd, 0):
            return "stopped"  # after a commit, a new init replaces the old one
        return self.state

    def running(self) -> Self:
        """Return the handle. Raises :class:`ContainerStopped` unless the container runs."""
        if (status := self.status) in {"running", "paused"}:
            return self
        if self.state == "running" and self.owner != os.getpid():
            raise ContainerStopped(
                f"the container {self.id} is held outside, by process {self.owner}: "
                f"{_OTHER_PROCESS}"
            )
        if status == "created":
            raise ContainerStopped(
                "the container has not been started. Use it in a `with` statement, or call "
                "start() first."
            )
        raise ContainerStopped(f"{self.name} is {status}: make a new one.")

    def pause(self) -> None:
        """Freeze the cgroup."""
        self.running().cgroup.freeze()
        self.state = "paused"

    def unpause(self) -> None:
        """Thaw the cgroup."""
        self.running().cgroup.thaw()
        self.state = "running"

    def ready(self) -> Self:
        """Return the handle once a process can join the container.

        Raises :class:`ContainerStopped` unless the container runs and is not paused.
        """
        raise NotImplementedError

    def start(self) -> None:
        """Start the container."""
        raise NotImplementedError

    def close(self) -> None:
        """End the use of the container by this process."""
        raise NotImplementedError

    def user_namespaces(self) -> tuple[int, int]:
        """Return descriptors of the user namespace of commands, and of the one that the container
        was built in; -1 for each that does not exist.
        """
        raise NotImplementedError

    def descriptors(self) -> list[int]:
        """Return the descriptors of the container in this process: a fork inside must not have
        them.
        """
        raise NotImplementedError

    def figures(self) -> Stats:
        """Return what the container uses, without the pressure (which takes more files to read)."""
        raise NotImplementedError

    def request_layer(self) -> tuple[Message, Descriptors]:
        """Ask the launcher for the writable layer; return its answer and descriptors."""
        raise NotImplementedError


def without_init(stats: Stats, settings: Settings) -> Stats:
    """Return the figures of a cgroup without init, which is not a process of the user's."""
    less = {
        name: max(0, value - OVERHEAD)
        for name in ("pids_current", "pids_peak")
        if (value := getattr(stats, name)) is not None
    }
    return replace(stats, memory_limit=settings.memory, **less)
