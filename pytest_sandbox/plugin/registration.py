"""Plugins that a session has only if something needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

__all__ = ["registered"]

_Plugin = TypeVar("_Plugin")


def registered(
    config: pytest.Config, make: Callable[[pytest.Config], _Plugin], name: str
) -> _Plugin:
    """Return the plugin ``name`` of a session, made and registered at the first call."""
    found: Any = config.pluginmanager.get_plugin(name)
    if found is None:
        found = make(config)
        config.pluginmanager.register(found, name)
    plugin: _Plugin = found
    return plugin
