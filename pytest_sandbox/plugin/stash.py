"""Keys of what the plugin stores on items: set by selection.py, read by the other modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_sandbox.settings.settings import Settings

__all__ = ["HOLDS", "INSIDE", "IN_TEST_PROCESS", "OUTSIDE", "SETTINGS"]

#: The settings of a test's container.
SETTINGS: pytest.StashKey[Settings] = pytest.StashKey()
#: Whether the test runs inside a container.
INSIDE = pytest.StashKey[bool]()
#: Whether the test runs in pytest's process and uses the fixture ``container``.
HOLDS = pytest.StashKey[bool]()
#: On the configuration: how many tests stay outside only because they use container_factory.
OUTSIDE = pytest.StashKey[int]()
#: Set in the test process only, by protocol.py.
IN_TEST_PROCESS = pytest.StashKey[bool]()
