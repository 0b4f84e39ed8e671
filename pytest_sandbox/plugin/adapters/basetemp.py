"""The option ``--basetemp``: whoever names a directory looks for ``tmp_path`` of tests there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_sandbox.plugin import artifacts

if TYPE_CHECKING:
    import pytest

__all__ = ["register"]


def register(config: pytest.Config) -> None:
    """Add the pattern."""
    if config.getoption("basetemp", default=None):
        artifacts.add_pattern(config, "{tmp_path}")
