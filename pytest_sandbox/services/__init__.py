"""Services that tests need: ``with redis().start() as server: server.url``; and what they are
waited for: ``container.wait_for(Port(8000) | Log("started"))``.
"""

from __future__ import annotations

from pytest_sandbox.container.conditions import Command, Condition, File, Http, Log, Port
from pytest_sandbox.errors import ServiceError, ServiceTimeout
from pytest_sandbox.services.brokers import kafka, rabbitmq
from pytest_sandbox.services.recipes import mariadb, postgres, redis, s3
from pytest_sandbox.services.service import Running, Service

__all__ = [
    "Command",
    "Condition",
    "File",
    "Http",
    "Log",
    "Port",
    "Running",
    "Service",
    "ServiceError",
    "ServiceTimeout",
    "kafka",
    "mariadb",
    "postgres",
    "rabbitmq",
    "redis",
    "s3",
]
