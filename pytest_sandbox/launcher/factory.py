"""The creation of one container: its cgroup, its writable layer, its processes."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pytest_sandbox.linux import file_mounts, mounts
from pytest_sandbox.linux.cgroup import find_hierarchy
from pytest_sandbox.runtime import privileges, storage
from pytest_sandbox.runtime.create import ContainerBuilder, Created
from pytest_sandbox.runtime.host_resources import HostResources
from pytest_sandbox.runtime.protocol import close_all
from pytest_sandbox.runtime.spec import OVERHEAD, Spec

if TYPE_CHECKING:
    from pytest_sandbox.launcher.cgroup_remover import CgroupRemover
    from pytest_sandbox.launcher.layer_holder import LayerHolder
    from pytest_sandbox.launcher.networks import Networks
    from pytest_sandbox.linux.cgroup import Cgroup
    from pytest_sandbox.linux.network_namespace import NetworkNamespace

__all__ = ["ContainerFactory", "ContainerRecord"]

#: How often the host's mounts are read, and a container created, while other tools mount and
#: unmount file systems.
_TRIES = 100


@dataclass(slots=True)
class ContainerRecord:
    """One container as the launcher knows it: claimed by the client, or prewarmed."""

    id: str
    spec: Spec
    created: Created
    cgroup: Cgroup
    points: list[tuple[str, str]]
    """The mount point and the lower directory of each overlay of the host's mounts."""
    place: storage.Place
    file_stamps: list[file_mounts.Stamp]
    mounts_version: int
    """Which of the host's mounts it was created on."""
    network: NetworkNamespace | None
    """The network namespace, where the launcher has created one in advance."""
    is_claimed: bool = False
    has_unused_network: bool = True
    """Whether the client has not used the network namespace."""
    metadata: Any = None
    """What other processes of the user are told of it."""
    since: float = 0.0
    """When it was claimed, in seconds since the epoch."""
    request: int = 0
    """The number of the request that it was created for."""
    held_as: str = ""
    """The key of its writable layer in the layer holder, once it was committed."""
    is_replaced: bool = False
    """Whether another container has its id and its cgroup already."""

    @property
    def pidfd(self) -> int:
        """The pidfd of its init."""
        return self.created.pidfd


class ContainerFactory:
    """Creates containers for one session; ``lock`` is the path of its lock file."""

    def __init__(
        self,
        session: str,
        lock: str,
        layer_holder: LayerHolder,
        cgroup_remover: CgroupRemover,
        networks: Networks,
    ) -> None:
        self.session = find_hierarchy().attach(session)
        #: Reports POLLPRI when something is mounted or unmounted.
        self.mounts = mounts.watch()
        self.host = HostResources(lock.removesuffix(".lock"))
        self._lock = lock
        self._layer_holder = layer_holder
        self._cgroup_remover = cgroup_remover
        self._networks = networks
        self._count = 0
        self._mounts_version = 0
        #: Whether the host's mounts changed and could not be read since.
        self._has_old_mounts = False
        #: The last container's, if the host's mounts are still those that it was created on.
        self._builder: ContainerBuilder | None = None

    def find_mounts(self) -> None:
        """Read the host's mounts again; prewarmed containers are not current any more."""
        self._mounts_version += 1
        self._builder = None
        self._has_old_mounts = True
        for _ in range(_TRIES):
            # A mount may disappear between being listed and being tried.
            with suppress(FileNotFoundError, NotADirectoryError):
                self.host.find_mounts()
                self._has_old_mounts = False
                return

    def is_current(self, record: ContainerRecord) -> bool:
        """Return whether a new container of this spec would be the same as ``record``."""
        return record.mounts_version == self._mounts_version and file_mounts.are_current(
            record.file_stamps
        )

    def create_on_changing_host(self, spec: Spec) -> ContainerRecord:
        """Create a container, and try again where a mount disappeared meanwhile."""
        for _ in range(_TRIES - 1):
            try:
                return self.create(spec)
            except OSError:
                if not mounts.has_changed(self.mounts):
                    raise
                self.find_mounts()
        return self.create(spec)

    def create(self, spec: Spec) -> ContainerRecord:
        """Create a container in a cgroup of its own.

        Raises :class:`OSError`, :class:`StepError` among them, and :class:`UnsupportedError`.
        """
        self._count += 1
        identity = f"{self.session.name}-{self._count}"
        cgroup = self.session.create(identity)
        try:
            return self.create_as(identity, spec, cgroup)
        except BaseException:
            self._cgroup_remover.remove(cgroup)
            raise

    def create_as(self, identity: str, spec: Spec, cgroup: Cgroup) -> ContainerRecord:
        """Create a container with this id, which is its host name, in a cgroup that exists."""
        if self._has_old_mounts:
            self.find_mounts()  # the error of this try is the answer to the client
        place, held_layers, network = storage.MEMORY, dict[str, int](), None
        try:
            cgroup.apply(spec.limits, overhead=OVERHEAD)
            for key in spec.held_layers:
                (held_layers[key],) = self._layer_holder.ask("clone", key)
            place = self._make_place(spec, identity)
            network = self._take_network(spec)
            builder = self._builder_for(
                replace(spec, layer_directory=place.directory, layer_device=place.device),
                hostname=identity,
                network=-1 if network is None else network.fd,
                cgroup=cgroup,
                held_layers=held_layers,
            )
            created = builder.build(cgroup.fd())
            self._builder = builder
        except BaseException as error:
            self._builder = None
            if network is not None:
                self._networks.put_back(network, is_unused=False)
            place.remove()
            storage.raise_if_unsupported(error, place)
            raise
        finally:
            close_all(list(held_layers.values()))
        place.release()
        return ContainerRecord(
            identity,
            spec,
            created,
            cgroup,
            self.host.points(),
            place,
            builder.file_stamps,
            self._mounts_version,
            network,
        )

    def _builder_for(
        self,
        spec: Spec,
        *,
        hostname: str,
        network: int,
        cgroup: Cgroup,
        held_layers: dict[str, int],
    ) -> ContainerBuilder:
        """Return the last container's builder if it can be used again, or a new one."""
        files = cgroup.join_paths() if cgroup.fd() < 0 else ()
        shown = cgroup.shown()
        builder = self._builder
        if (
            builder is not None
            and builder.is_for(spec)
            and builder.rename(hostname, network, files, shown)
        ):
            return builder
        return ContainerBuilder(
            spec,
            self.host,
            hostname=hostname,
            network=network,
            cgroup_files=files,
            held_layers=held_layers,
            shown_cgroups=shown,
        )

    def _take_network(self, spec: Spec) -> NetworkNamespace | None:
        """Return a network namespace that belongs to the payloads' user namespace, so that their
        CAP_NET_ADMIN applies to it; None if a builder can make it, or for the host's network.
        """
        if not spec.own_network or not spec.user_namespace:
            return None
        return self._networks.take(spec, self.host.user_namespace_for(spec))

    def _make_place(self, spec: Spec, identity: str) -> storage.Place:
        """Make the place of the writable layer, with what it starts with."""
        base = spec.layers or self.host.root.layers
        if base is None:
            return storage.MEMORY
        if spec.disk is not None and not self.host.is_root:
            raise privileges.disk_limit_unsupported(self.host.root, spec.disk)
        place = storage.make(
            base, spec.disk, session=self.session.name, identity=identity, lock=self._lock
        )
        points = ["", *(point for point, _lower in self.host.points())]
        numbers = {point: number for number, point in enumerate(points)}
        numbers |= {directory: number for number, directory in spec.numbered_directories()}
        for point, saved in spec.saved:
            if point in numbers:
                storage.fill(place, numbers[point], saved)
            elif os.listdir(saved):
                reason = (
                    "the saved files are below a mount of the host that is gone: mount it again"
                )
                raise FileNotFoundError(errno.ENOENT, reason, point)
        return place
