"""Apply what a container prepared in advance cannot have yet: its host name, its network, and the
host's ports that it publishes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pytest_sandbox.container.builder import as_builder
from pytest_sandbox.container.layer import opened_layer
from pytest_sandbox.errors import ContainerStopped, SetupError
from pytest_sandbox.linux import namespaces
from pytest_sandbox.runtime import etc_files
from pytest_sandbox.settings.destinations import is_limited

if TYPE_CHECKING:
    from pytest_sandbox.container.handle import Handle
    from pytest_sandbox.container.network import Network

__all__ = ["configure"]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all


def configure(handle: Handle) -> None:
    """Set a container's host name, connect it to its network, and publish its ports; a new init
    keeps the addresses.
    """
    if handle.settings.names:
        _set_hostname(handle, handle.hostname)
    if handle.endpoint is not None:
        handle.endpoint.network.plug(handle.endpoint, handle.pidfd)
    elif is_limited(handle.settings.network):
        from pytest_sandbox.container import egress

        egress.connect(handle)
    elif not (
        isinstance(handle.settings.network, str) or handle.is_disconnected or handle.connects_later
    ):
        network = cast("Network", handle.settings.network)
        handle.endpoint = network.attach(handle.id, handle.settings.names, handle.pidfd)
    if handle.settings.publish:
        from pytest_sandbox.container.publish import publish, start_relay

        if handle.publishes_later:
            start_relay(handle)
        else:
            publish(handle)


def _set_hostname(handle: Handle, name: str) -> None:
    try:
        namespaces.set_hostname(handle.pidfd, name, handle.user_namespaces()[1])
        _write_hostname(handle, name)
    except ProcessLookupError as error:
        raise ContainerStopped.ended(handle.id) from error
    except OSError as error:
        raise SetupError("set host name", str(error.strerror)) from error


def _write_hostname(handle: Handle, name: str) -> None:
    """Write the host name to the generated files of /etc: nothing has run in the container yet."""
    with opened_layer(handle) as (layer, overlays):

        def write() -> None:
            for number, overlay in overlays.items():
                etc_files.rename(f"nodes-{number}", overlay.point, name, dir_fd=layer)

        as_builder(handle.user_namespaces()[1], write)
