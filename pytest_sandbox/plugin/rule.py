"""Who is inside: ask for the container and you hold it; don't ask and you are in it."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_sandbox.errors import SettingsError
from pytest_sandbox.plugin.options import given, wants_sandbox
from pytest_sandbox.settings import Settings

__all__ = ["INSIDE", "SETTINGS", "pytest_collection_modifyitems"]

#: The settings of a test's container, inside or held.
SETTINGS = pytest.StashKey[Settings]()
#: Whether the test's body runs inside.
INSIDE = pytest.StashKey[bool]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Decide for each test, and refuse a wrong setting before any test runs."""
    ini, options = given(config)
    everywhere = wants_sandbox(config)
    for item in items:
        names = getattr(item, "fixturenames", ())
        holds = "container" in names
        marked = item.get_closest_marker("container") is not None
        kept_out = item.get_closest_marker("no_sandbox") is not None
        item.stash[INSIDE] = not holds and (marked or (everywhere and not kept_out and "container_factory" not in names))
        if holds or item.stash[INSIDE]:
            item.stash[SETTINGS] = _settings(item, ini, options)


def _settings(item: pytest.Item, ini: dict[str, object], options: dict[str, object]) -> Settings:
    marked: dict[str, Any] = {}
    for mark in reversed(list(item.iter_markers("container"))):  # the nearest comes last, and wins
        if mark.args:
            raise pytest.UsageError(
                f"{item.nodeid}: @pytest.mark.container takes settings by name, such as memory='512m'; found {mark.args!r}"
            )
        marked.update(mark.kwargs)
    try:
        settings = Settings.of(**{**ini, **marked, **options})
    except SettingsError as error:
        raise pytest.UsageError(f"{item.nodeid}: {error}") from None
    changed = item.config.hook.pytest_sandbox_settings(item=item, settings=settings)
    return settings if changed is None else changed
