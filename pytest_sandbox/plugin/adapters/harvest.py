"""pytest-harvest: the results bag and the saved fixtures of each test, which later tests and the
end of the session collect.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pytest_sandbox.container import values

if TYPE_CHECKING:
    import pytest

__all__ = ["register"]


def register(config: pytest.Config) -> None:
    """Register the adapter."""
    config.pluginmanager.register(_Adapter(), f"sandbox-{__name__}")


class _Adapter:
    def __init__(self) -> None:
        self._bag: Any = import_module("pytest_harvest").ResultsBag
        self._store: dict[str, Any] = import_module("pytest_harvest.plugin").FIXTURE_STORE

    def pytest_sandbox_carry(self, item: pytest.Item) -> Any:
        """Return what the test has stored, by the names of the fixtures; None if it is nothing.

        Raises :class:`pytest_sandbox.errors.SandboxError` for a value that is not data.
        """
        found = {}
        for name, saved in self._store.items():
            if item.nodeid in saved:
                value = saved[item.nodeid]
                is_bag = type(value) is self._bag
                found[name] = [is_bag, values.encode(dict(value) if is_bag else value)]
        return found or None

    def pytest_sandbox_carried(self, item: pytest.Item, data: Any) -> None:
        """Store it in the parent."""
        for name, (is_bag, encoded) in data.items():
            value = values.decode(encoded)
            saved = self._store.setdefault(name, {})
            saved[item.nodeid] = self._bag(value) if is_bag else value
