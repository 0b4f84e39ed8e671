"""Hooks for conftest files and other plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.container.container import Container
    from pytest_sandbox.outcome import Outcome, Stats
    from pytest_sandbox.settings import Settings


@pytest.hookspec(firstresult=True)
def pytest_sandbox_settings(
    item: pytest.Item, settings: Settings
) -> Settings | Mapping[str, object] | None:
    """Return changed settings for a test's container, or None to leave them as they are. Called at
    collection.

    ``settings.replace(timeout=600)`` and the dict ``{"timeout": 600}`` are the same.
    """


def pytest_sandbox_started(item: pytest.Item, container: Container) -> None:
    """Look at a test's container before the test begins."""


def pytest_sandbox_outcome(item: pytest.Item, outcome: Outcome, stats: Stats) -> None:
    """Learn how a test inside ended, as a process, and what it used."""


def pytest_sandbox_discard(item: pytest.Item, container: Container) -> None:
    """Take a last look into a test's container before its layer goes."""
