"""pytest-recording and pytest-vcr: the cassettes that they record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_sandbox.plugin import artifacts

if TYPE_CHECKING:
    import pytest

__all__ = ["register"]


def register(config: pytest.Config) -> None:
    """Add the pattern."""
    artifacts.add_pattern(config, "**/cassettes/**")
