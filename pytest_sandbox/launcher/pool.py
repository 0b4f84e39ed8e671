"""The containers of one launcher: those that the client has claimed, and the prewarmed one."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import ContainerStopped
from pytest_sandbox.linux import cgroup, process

if TYPE_CHECKING:
    from pytest_sandbox.launcher.cgroup_remover import CgroupRemover
    from pytest_sandbox.launcher.factory import ContainerFactory, ContainerRecord
    from pytest_sandbox.launcher.layer_remover import LayerRemover
    from pytest_sandbox.launcher.networks import Networks
    from pytest_sandbox.runtime.spec import Spec

__all__ = ["Pool"]

#: Milliseconds that a claimed container is left alone with before the next one is prewarmed:
#: creating one and starting something in another wait for the same locks of the kernel.
_PREWARM_DELAY = 2
#: Seconds for a killed init to end before a container takes its place.
_REPLACE_TIMEOUT = 0.5
#: Seconds for all inits, and all cgroups, at the end of the session.
_CLOSE_TIMEOUT = 10.0


class Pool:
    """The containers, by id and by the pidfd of their init, which is in the launcher's ``poll``."""

    def __init__(
        self,
        factory: ContainerFactory,
        cgroup_remover: CgroupRemover,
        layer_remover: LayerRemover,
        networks: Networks,
        poll: select.poll,
    ) -> None:
        self._factory = factory
        self._cgroup_remover = cgroup_remover
        self._layer_remover = layer_remover
        self._networks = networks
        self._poll = poll
        self._by_id: dict[str, ContainerRecord] = {}
        self._by_pidfd: dict[int, ContainerRecord] = {}
        #: Containers whose init has ended and whose layer is in the layer holder: the client can
        #: have them renewed.
        self._committed: dict[str, ContainerRecord] = {}
        self._prewarmed: ContainerRecord | None = None
        self._prewarmed_at = 0.0
        #: The spec to prewarm next, after ``prewarm_delay``; None: nothing.
        self.next_spec: Spec | None = None
        #: Milliseconds.
        self.prewarm_delay = 0
        self._last_spec: Spec | None = None

    # -- what the client asks for

    def take(self, spec: Spec) -> ContainerRecord:
        """Return the prewarmed container if it is of this spec, else a new one."""
        return self._current_prewarmed(spec) or self._add(
            self._factory.create_on_changing_host(spec)
        )

    def claim(self, record: ContainerRecord, metadata: Any) -> None:
        """Record that a container is the client's, and have the next one prewarmed.

        At once, unless one was waiting or the spec is a new one: then the client starts something
        in this one first.
        """
        record.is_claimed, record.metadata, record.since = True, metadata, time.time()
        waited = time.monotonic() - self._prewarmed_at
        was_waiting = record is self._prewarmed and waited >= _PREWARM_DELAY / 1000
        is_new = record.spec != self._last_spec
        self.prewarm_delay = _PREWARM_DELAY if was_waiting or is_new else 0
        self._last_spec = self.next_spec = record.spec
        if record is self._prewarmed:
            self._prewarmed = None

    def prewarm(self, spec: Spec) -> ContainerRecord | None:
        """Prewarm a container of this spec; return it, or None if there is one already."""
        self.next_spec = None
        if self._current_prewarmed(spec) is not None:
            return None
        # The same error is the answer to the client when it asks for such a container.
        with suppress(Exception):
            self._prewarmed = self._add(self._factory.create(spec))
            self._prewarmed_at = time.monotonic()
            return self._prewarmed
        return None

    def _current_prewarmed(self, spec: Spec) -> ContainerRecord | None:
        """Return the prewarmed container; kill one of another spec, or of older mounts or files."""
        record = self._prewarmed
        if record is not None and not (record.spec == spec and self._factory.is_current(record)):
            process.kill(record.pidfd, signal.SIGKILL)
            self._prewarmed = None
        return self._prewarmed

    def renew(self, identity: str, spec: Spec) -> ContainerRecord:
        """Give a container whose layer is held a new init and a new layer, in the same cgroup and
        with the same id.

        Raises :class:`ContainerStopped`, and what the factory raises.
        """
        old = self._committed.pop(identity, None)
        if old is None:
            old = self.find(identity)
            process.kill(old.pidfd, signal.SIGKILL)
            self._replace(old)
        try:
            record = self._add(self._factory.create_as(old.id, spec, old.cgroup))
        except BaseException:
            self._committed[old.id] = old
            raise
        record.is_claimed, record.metadata, record.since = True, old.metadata, old.since
        return record

    def close_one(self, identity: str, *, has_unused_network: bool) -> None:
        """Kill a container that the client does not need any more."""
        record = self._by_id.get(identity)
        if record is not None:
            record.has_unused_network = has_unused_network
            self._kill(record)
        elif identity in self._committed:
            self._cgroup_remover.remove(self._committed.pop(identity).cgroup)

    def cancel(self, request: int) -> None:
        """Kill the container that was created for a request, whose client was interrupted."""
        for record in self._by_id.values():
            if record.request == request:
                self._kill(record)

    def _kill(self, record: ContainerRecord) -> None:
        record.is_claimed = False
        process.kill(record.pidfd, signal.SIGKILL)

    # -- what there is

    def find(self, identity: str) -> ContainerRecord:
        """Return the container with this id. Raises :class:`ContainerStopped`."""
        record = self._by_id.get(identity)
        if record is None:
            raise ContainerStopped.ended(identity)
        return record

    def claimed(self) -> list[ContainerRecord]:
        """Return the containers that the client has claimed."""
        return [record for record in self._by_id.values() if record.is_claimed]

    def has(self, pidfd: int) -> bool:
        """Return whether a descriptor is the pidfd of a container's init."""
        return pidfd in self._by_pidfd

    def _add(self, record: ContainerRecord) -> ContainerRecord:
        self._by_id[record.id] = self._by_pidfd[record.pidfd] = record
        self._poll.register(record.pidfd, select.POLLIN)
        return record

    # -- what has ended

    def dispose(self, pidfd: int) -> None:
        """Release a container whose init has ended.

        One that was committed can be renewed until the client closes it.
        """
        # poll(2) may have reported a descriptor that was closed since, and is another init's now.
        if not process.ended(pidfd, 0):
            return
        record = self._by_pidfd[pidfd]
        if record is self._prewarmed:
            self._prewarmed = None
        self._release(record)
        if record.is_replaced:
            return
        if record.held_as and record.is_claimed:
            self._committed[record.id] = record
        else:
            self._cgroup_remover.remove(record.cgroup)

    def _replace(self, record: ContainerRecord) -> None:
        """Release a killed container whose id another one takes; later if its init does not end in
        time, as it waits until its dead children are reaped (pid_namespaces(7)).
        """
        del self._by_id[record.id]
        record.is_replaced = True
        if process.ended(record.pidfd, _REPLACE_TIMEOUT):
            self._release(record)

    def _release(self, record: ContainerRecord) -> None:
        """Reap a dead init, and close the container's descriptors."""
        del self._by_pidfd[record.pidfd]
        if self._by_id.get(record.id) is record:
            del self._by_id[record.id]
        self._poll.unregister(record.pidfd)
        process.reap(record.created.pid, record.pidfd)
        os.close(record.pidfd)
        if record.network is not None:
            # Of a claimed one whose client has not closed it, the use is not known.
            is_unused = not record.is_claimed and record.has_unused_network
            self._networks.put_back(record.network, is_unused=is_unused)
        self._layer_remover.free(_freed_later(record), record.place.directory)

    def close(self) -> None:
        """Kill every container, and remove the cgroups of the session."""
        deadline = time.monotonic() + _CLOSE_TIMEOUT
        for pidfd in self._by_pidfd:
            process.kill(pidfd, signal.SIGKILL)
        cgroup.destroy(self._factory.session.directories, _CLOSE_TIMEOUT)
        for pidfd, record in self._by_pidfd.items():
            process.ended(pidfd, deadline - time.monotonic())
            # The client waits for the launcher, and not for the layer remover. What is on disk is
            # removed with the session.
            self._layer_remover.free(_freed_later(record), None)


def _freed_later(record: ContainerRecord) -> list[int]:
    """Return the descriptors whose last close(2) frees the container's files and mounts."""
    created = record.created
    fds = (created.layer, created.layer_mount, created.mount_namespace)
    return [fd for fd in fds if fd >= 0]
