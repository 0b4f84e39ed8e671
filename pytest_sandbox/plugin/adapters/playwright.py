"""pytest-playwright: traces, screenshots and videos, in the directory ``--output``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pytest_sandbox.plugin import artifacts

if TYPE_CHECKING:
    import pytest

__all__ = ["register"]


def register(config: pytest.Config) -> None:
    """Add the pattern."""
    artifacts.add_pattern(config, f"{os.path.abspath(config.getoption('output'))}/**")
