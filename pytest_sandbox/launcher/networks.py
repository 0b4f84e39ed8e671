"""The network namespaces of a launcher's containers.

One that its container has not used is given to a later container: that saves creating it, and the
kernel removing it. Nothing can be left in it, since all of these hold:

- The payloads had no capability that docker's do not have by default, so not CAP_NET_ADMIN, and
  /proc/sys was read-only: they could change no address, route, rule or sysctl. They had no volume,
  through which they could have got at another /proc or given a socket to another process, and the
  seccomp profile kept keyrings from them.
- The client has not connected the container to a network or published its ports.
- All processes have ended, and the namespace has no socket, no device but loopback, no counter of
  any protocol that has changed, no flow label (NetworkNamespace.looks_new()).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_sandbox.linux import capabilities
from pytest_sandbox.linux.network_namespace import NetworkNamespace

if TYPE_CHECKING:
    from pytest_sandbox.runtime.spec import Spec

__all__ = ["Networks"]

#: Network namespaces that may be used again at one time, in use or not: each has six descriptors.
_MOST_WATCHED = 32


class Networks:
    """Creates network namespaces, and keeps those that can be used again."""

    def __init__(self) -> None:
        self._free: list[NetworkNamespace] = []
        self._watched = 0

    def take(self, spec: Spec, owner: int) -> NetworkNamespace:
        """Return a network namespace owned by the user namespace ``owner``. Raises OSError."""
        may_be_reused = _is_confined(spec)
        while may_be_reused and self._free:
            network = self._free.pop()
            # Now: the kernel releases the sockets of a process some time after its end.
            if network.owner == owner and network.looks_new():
                return network
            self._close(network)
        is_watched = may_be_reused and self._watched < _MOST_WATCHED
        network = NetworkNamespace(owner, is_watched=is_watched)
        self._watched += is_watched
        return network

    def put_back(self, network: NetworkNamespace, *, is_unused: bool) -> None:
        """Take back the namespace of a container that has ended.

        ``is_unused`` says that neither its client nor a process with more privileges has used it.
        """
        if is_unused and network.is_watched:
            self._free.append(network)
        else:
            self._close(network)

    def _close(self, network: NetworkNamespace) -> None:
        self._watched -= network.is_watched
        network.close()


def _is_confined(spec: Spec) -> bool:
    """Return whether payloads of this spec can leave nothing behind in a network namespace that
    :meth:`NetworkNamespace.looks_new` does not find.
    """
    return (
        spec.protected
        and spec.seccomp
        and not spec.packet_sockets
        and not spec.volumes
        and not spec.devices
        and not spec.capabilities & ~capabilities.DOCKER_DEFAULT
    )
