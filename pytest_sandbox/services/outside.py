"""A running service of the pytest process, in a test process that was created before it: one that
tests share, or a new interpreter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from pytest_sandbox.errors import ContainerStopped, SandboxError
from pytest_sandbox.services.service import Running

if TYPE_CHECKING:
    from pytest_sandbox.services.service import Service

__all__ = ["Outside", "OutsideContainer"]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all


class OutsideContainer:
    """What is known here of a service's container: its id and its addresses."""

    def __init__(self, described: dict[str, Any]) -> None:
        self.id: str = described["id"]
        self.ip_address: str | None = described["ip_address"]
        self.host_address: str | None = described["host_address"]
        self.ports: dict[int | str, int] = dict(described["ports"])

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ContainerStopped(
            f"the container {self.id} belongs to the pytest process, outside: container.{name} is "
            "not available in a test inside. Keep the test outside (no_sandbox)."
        )


class Outside(Running):
    """As :class:`Running`, with its addresses and its log until the test."""

    def __init__(self, service: Service, described: dict[str, Any]) -> None:
        container: Any = OutsideContainer(described)
        super().__init__(service, container)
        self._network_namespace = described["network"]
        self._logs: str = described["logs"]

    def _is_elsewhere(self) -> bool:
        return True

    def logs(self) -> str:
        """Return the end of its output until the test."""
        return self._logs

    def stop(self) -> NoReturn:
        """Raise :class:`SandboxError`: the pytest process stops the service."""
        raise SandboxError(
            f"the service {self.name} belongs to the pytest process, which stops it. Keep the test "
            "outside (no_sandbox) to stop or clone it."
        )

    def clone(self) -> NoReturn:
        """Raise :class:`SandboxError`, as :meth:`stop`."""
        self.stop()

    def close(self) -> None:
        """Do nothing: the pytest process closes the service."""
