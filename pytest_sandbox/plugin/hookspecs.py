"""Hooks for conftest files and other plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.container.container import Container
    from pytest_sandbox.outcome import Outcome, Stats
    from pytest_sandbox.settings.settings import Settings

    Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None


@pytest.hookspec(firstresult=True)
def pytest_sandbox_settings(
    item: pytest.Item, settings: Settings
) -> Settings | Mapping[str, object] | None:
    """Return changed settings for a test's container, or None to leave them unchanged. Called at
    collection.

    ``settings.replace(timeout=600)`` and the dict ``{"timeout": 600}`` are equivalent.
    """


def pytest_sandbox_started(item: pytest.Item, container: Container) -> None:
    """Called when a test's container has started, before the test begins."""


def pytest_sandbox_outcome(item: pytest.Item, outcome: Outcome, stats: Stats) -> None:
    """Called when the process of a test inside has ended: how it ended, and what it used."""


def pytest_sandbox_discard(item: pytest.Item, container: Container) -> None:
    """Called before a test's container, with its writable layer, is discarded."""


def pytest_sandbox_carry(item: pytest.Item) -> Json:
    """Return what this plugin has recorded in a test's process, as JSON, or None. Called inside
    when the test has ended, at most 2 MiB.

    A test process that was killed, or that timed out, does not call it.
    """


def pytest_sandbox_carried(item: pytest.Item, data: Json) -> None:
    """Called outside with what the same plugin's ``pytest_sandbox_carry`` has returned.

    A hostile test can change it: check types and sizes, and use no path or name in it unchecked.
    """
