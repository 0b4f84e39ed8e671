"""hypothesis: the examples that it found, which it tries first the next time."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pytest_sandbox.plugin import artifacts

if TYPE_CHECKING:
    import pytest

__all__ = ["register"]


def register(config: pytest.Config) -> None:
    """Add the pattern."""
    configuration: Any = import_module("hypothesis.configuration")
    found = configuration.storage_directory("examples")
    path = getattr(found, "path", found)  # older versions return the path itself
    artifacts.add_pattern(config, f"{os.path.abspath(path)}/**")
