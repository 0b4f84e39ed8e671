"""The pytest plugin: ``--sandbox``, ``@pytest.mark.container``, ``container``,
``container_factory``.

This module is all that a session loads which asks for nothing; what runs tests inside is loaded
when the first one is collected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_sandbox.plugin.fixtures import container, container_factory, pytest_runtest_makereport
from pytest_sandbox.plugin.options import (
    pytest_addoption,
    pytest_configure,
    pytest_load_initial_conftests,
)
from pytest_sandbox.plugin.selection import pytest_collection_modifyitems, pytest_testnodedown

if TYPE_CHECKING:
    import pytest

__all__ = [
    "container",
    "container_factory",
    "pytest_addhooks",
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_load_initial_conftests",
    "pytest_runtest_makereport",
    "pytest_testnodedown",
]


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare this plugin's own hooks."""
    from pytest_sandbox.plugin import hookspecs

    pluginmanager.add_hookspecs(hookspecs)
