"""``config.cache.mkdir()``: a directory whose files outlive the session. What tests store with
``config.cache.set()`` is sent as data (session_state.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_sandbox.plugin import artifacts

if TYPE_CHECKING:
    import pytest

__all__ = ["register"]


def register(config: pytest.Config) -> None:
    """Add the pattern."""
    cache: Any = getattr(config, "cache", None)
    if cache is not None:
        artifacts.add_pattern(config, f"{cache._cachedir}/d/**")
