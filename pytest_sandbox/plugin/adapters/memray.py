"""pytest-memray: what each test has allocated. pytest-memray itself reads these files at the end of
the session.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pytest_sandbox.plugin import artifacts

if TYPE_CHECKING:
    import pytest

__all__ = ["register"]


def register(config: pytest.Config) -> None:
    """Add the pattern."""
    manager: Any = config.pluginmanager.get_plugin("memray_manager")
    if manager is not None:
        artifacts.add_pattern(config, f"{os.path.abspath(manager.result_path)}/**")
