"""hypothesis: the examples that it found, which it tries first the next time; and the constants in
the suite's sources, which it looks for once in each process.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pytest_sandbox.plugin import artifacts

if TYPE_CHECKING:
    import pytest

__all__ = ["register"]


def register(config: pytest.Config) -> None:
    """Register the adapter, and the pattern of the examples."""
    configuration: Any = import_module("hypothesis.configuration")
    found = configuration.storage_directory("examples")
    path = getattr(found, "path", found)  # older versions return the path itself
    artifacts.add_pattern(config, f"{os.path.abspath(path)}/**")
    config.pluginmanager.register(_Adapter(), f"sandbox-{__name__}")


class _Adapter:
    def pytest_sandbox_started(self, item: pytest.Item) -> None:
        """Have hypothesis read the sources in the parent, before the fork.

        It looks for constants in each module of the suite, after the collection and whenever
        modules were imported since. Every test inside would do that again for those that this
        plugin and the fixtures have imported. If this version of hypothesis has no such function,
        every test does.
        """
        if item.get_closest_marker("hypothesis") is not None:  # hypothesis' own plugin sets it
            with suppress(Exception):
                import_module("hypothesis.internal.conjecture.providers")._get_local_constants()
