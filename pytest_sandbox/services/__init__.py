"""What a test waits for in a container: ``container.wait_for(Port(8000) | Log("started"))``."""

from __future__ import annotations

from pytest_sandbox.container.conditions import Command, Condition, File, Http, Log, Port
from pytest_sandbox.errors import ServiceError, ServiceTimeout

__all__ = ["Command", "Condition", "File", "Http", "Log", "Port", "ServiceError", "ServiceTimeout"]
