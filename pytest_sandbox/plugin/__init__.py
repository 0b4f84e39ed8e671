"""The pytest plugin: ``--sandbox``, ``@pytest.mark.container``, ``container``, ``container_factory``."""

from __future__ import annotations

from pytest_sandbox.plugin.fixtures import container, container_factory
from pytest_sandbox.plugin.inside import pytest_runtest_protocol
from pytest_sandbox.plugin.options import pytest_addoption, pytest_configure, pytest_report_header
from pytest_sandbox.plugin.rule import pytest_collection_modifyitems

__all__ = [
    "container",
    "container_factory",
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_report_header",
    "pytest_runtest_protocol",
]


def pytest_addhooks(pluginmanager: object) -> None:
    """Declare this plugin's own hooks."""
    from pytest_sandbox.plugin import hookspecs

    pluginmanager.add_hookspecs(hookspecs)  # type: ignore[attr-defined]
