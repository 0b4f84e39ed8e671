"""How a container that was made ahead, for anybody, becomes its taker's: by what no spec has to say
before.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

from pytest_sandbox.container.fork import as_builder
from pytest_sandbox.errors import ContainerStopped, SetupError
from pytest_sandbox.linux import namespaces
from pytest_sandbox.runtime import etc_files

if TYPE_CHECKING:
    from pytest_sandbox.container.container import Container
    from pytest_sandbox.container.network import Network

__all__ = ["settle"]


def settle(container: Container) -> None:
    """Give a container its host name and its place on its network, also to a new init of one that
    has them: the address stays.
    """
    if container.settings.hostname is not None:
        _name(container, container.settings.hostname)
    if container.endpoint is not None:
        container.endpoint.network.plug(container.endpoint, container.pidfd)
    elif not isinstance(container.settings.network, str):
        network = cast("Network", container.settings.network)
        container.endpoint = network.attach(container.id, container.hostname, container.pidfd)


def _name(container: Container, name: str) -> None:
    try:
        namespaces.set_hostname(container.pidfd, name, container.launcher.builder_fd)
        _write_name(container, name)
    except ProcessLookupError as error:
        raise ContainerStopped.ended(container.id) from error
    except OSError as error:
        raise SetupError("name host", str(error.strerror)) from error


def _write_name(container: Container, name: str) -> None:
    """Write the name into the generated files: nothing has run in the container yet."""
    layer, places = container.layer()
    try:
        directories = {f"nodes-{number}": point for number, (point, _lower) in places.items()}

        def write() -> None:
            for directory, point in directories.items():
                etc_files.rename(directory, point, name, dir_fd=layer)

        as_builder(container.user_namespaces()[1], write)
    finally:
        os.close(layer)
