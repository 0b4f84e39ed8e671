"""Keys of what the plugin stores on items: set by selection.py, read by the other modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from pytest_sandbox.settings.settings import Settings

__all__ = [
    "FRESH",
    "INDEX",
    "INSIDE",
    "IN_TEST_PROCESS",
    "OUTSIDE",
    "PROCESS",
    "SETTINGS",
    "SHARING",
    "Sharing",
]


class Sharing(NamedTuple):
    """How an item shares its test process: the ``scope``, and the ``node`` whose items do.

    Without a node, the item has a test process of its own. ``parameters`` are those of fixtures of
    wider scopes. ``fresh``: it is a new interpreter.
    """

    scope: str
    node: pytest.Collector | None = None
    parameters: tuple[tuple[str, int], ...] = ()
    fresh: bool = False


#: The settings of a test's container.
SETTINGS: pytest.StashKey[Settings] = pytest.StashKey()
#: With which other tests a test inside shares its container (scopes.py).
SHARING: pytest.StashKey[Sharing] = pytest.StashKey()
#: The index of an item in its session (scopes.py).
INDEX = pytest.StashKey[int]()
#: Whether the test runs inside a container.
INSIDE = pytest.StashKey[bool]()
#: On the configuration: how many tests stay outside only because they use container_factory.
OUTSIDE = pytest.StashKey[int]()
#: On the configuration: whether this is the session of a new interpreter (fresh_plugin.py).
FRESH = pytest.StashKey[bool]()
#: Set in the test process only, by protocol.py.
IN_TEST_PROCESS = pytest.StashKey[bool]()
#: Set in the test process only: the object that runs the item (test_process.py).
PROCESS = pytest.StashKey[Any]()
