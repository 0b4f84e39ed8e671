"""The pytest plugin: ``--sandbox``, the marks ``container`` and ``no_sandbox``, the fixtures
``container`` and ``container_factory``.

This package is all that is loaded in a session that runs no test in a container. Its modules, in
the order in which a test meets them:

- options.py and fixtures.py: options, ini settings, marks, fixtures.
- selection.py: at collection, which tests run inside, and with which settings.
- protocol.py: the parent's side of the tests inside; sandboxed_test.py: one of them.
- test_process.py: the fork that runs it.
- report_channel.py: the messages from the fork to the parent; messages.py and message_checker.py:
  their schemas and checks.
- originals.py: the functions that fixtures replace, while this package needs them.
- artifacts.py: files that are copied to the host when the test has ended; carry.py: state of other
  plugins; adapters/: such plugins.
- jobs.py: tests that start before their turn; status_line.py names those that run.
- results.py: pytest reports, from the messages or from how the fork ended.
- summary.py: what the session reports about its containers.
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
