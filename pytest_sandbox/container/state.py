"""The attributes of a container, each with what it means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_sandbox.client.snapshots import Snapshot
    from pytest_sandbox.container.fork import Child
    from pytest_sandbox.container.network import Endpoint
    from pytest_sandbox.container.popen import Popen
    from pytest_sandbox.container.rootfs import Rootfs
    from pytest_sandbox.linux.cgroup import Cgroup
    from pytest_sandbox.runtime.spec import Spec
    from pytest_sandbox.settings import Settings

__all__ = ["State"]


class State:
    """What a container is known by, and what it holds; :class:`~pytest_sandbox.Container` fills
    it.
    """

    settings: Settings
    """The settings that it was made with."""

    id: str
    """Its id, which is its host name too unless ``hostname`` is given; empty before
    :meth:`Container.start`.
    """

    label: str
    """What people are shown beside the id (a test's name, ``--name``); set it before
    :meth:`Container.start`.
    """

    kept: dict[str, str]
    """Directories that hold what the writable layer begins with, by where it lies
    (:mod:`pytest_sandbox.container.saved_layers`); set it before :meth:`Container.start`."""

    directories: tuple[str, ...]
    """Directories of the host that are laid over an image at their usual places, each under a
    writable layer; set it before :meth:`Container.start`."""

    taken: Snapshot | None
    """The writable layer, once it was committed and until something is done in here again."""

    frozen: list[Snapshot]
    """Committed layers of this container, in order: its writable layer lies on them."""

    freezing: str
    """The key of the writable layer in the layer holder, from the moment when it was asked for
    until :attr:`taken` has it."""

    endpoint: Endpoint | None
    """Its place on its :class:`~pytest_sandbox.Network`; None where it is on none, or has not
    started.
    """

    commands: set[Popen[Any]]
    """The commands of this process's that have not ended."""

    children: set[Child]
    """The forks of this process that were not waited for."""

    pidfd: int
    """The pidfd of its init process; from :meth:`Container.start` on."""

    rootfs: Rootfs
    """The image, or the host's root, that it lies on; from :meth:`Container.start` on."""

    cgroup: Cgroup
    """Its cgroup; from :meth:`Container.start` on."""

    spec: Spec
    """What the launcher was asked to make; from :meth:`Container.start` on."""

    def __repr__(self) -> str:
        return f"<Container {self.id or '(no id yet)'} {self.status}>"

    @property
    def _called(self) -> str:
        """What messages call it."""
        return f"the container {self.id}" if self.id else "the container"

    @property
    def status(self) -> str:
        """What it is: "created", "running", "paused" or "stopped"."""
        raise NotImplementedError

    @property
    def hostname(self) -> str:
        """The host name inside: ``hostname``, else the id."""
        return self.settings.hostname or self.id

    @property
    def ip_address(self) -> str | None:
        """Its address on its :class:`~pytest_sandbox.Network`, such as "172.30.0.2"; None where it
        is on none, or has not started.
        """
        return self.endpoint.address if self.endpoint else None
