"""Adapters to other plugins, one module each: how the files and the state that such a plugin has in
a test's process reach the parent.

An adapter uses the same means as any plugin: the hooks ``pytest_sandbox_carry`` and
``pytest_sandbox_carried``, and the setting ``artifacts``. Its function ``register`` is called in
a session that runs tests inside and has the plugin.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

__all__ = ["register"]

#: Module of this package -> names under which the plugin may be registered.
_ADAPTERS: dict[str, tuple[str, ...]] = {
    "allure": ("allure_listener",),
    "basetemp": ("tmpdir",),
    "bdd": ("pytest-bdd", "pytest_bdd.plugin"),
    "cache_directories": ("cacheprovider",),
    "harvest": ("harvest", "pytest_harvest.plugin"),
    "hypothesis": ("hypothesispytest", "_hypothesis_pytestplugin"),
    "measurements": (
        "codspeed",
        "pytest-durations",
        "pytest_durations",
        "pytest_codspeed.plugin",
        "profiling",
        "pytest_profiling",
        "monitor",
        "pytest_monitor.pytest_monitor",
    ),
    "json_report": ("pytest_jsonreport", "pytest_jsonreport.plugin"),
    "inline_snapshot": ("inline-snapshot-plugin",),
    "memray": ("memray_manager",),
    "playwright": ("playwright", "pytest_playwright.pytest_playwright"),
    "regressions": ("regressions", "pytest_regressions.plugin"),
    "snapshot": ("snapshot", "pytest_snapshot.plugin"),
    "syrupy": ("syrupy",),
    "vcr": ("recording", "pytest_recording.plugin", "vcr", "pytest_vcr"),
}


def register(config: pytest.Config) -> None:
    """Register the adapters of the plugins that the session has.

    Raises :class:`pytest.UsageError` for a plugin that cannot work with tests inside.
    """
    for module, names in _ADAPTERS.items():
        if any(config.pluginmanager.has_plugin(name) for name in names):
            import_module(f"{__name__}.{module}").register(config)
