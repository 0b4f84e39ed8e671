"""pytest-snapshot: the directories ``snapshots`` that ``--snapshot-update`` writes. A snapshot that
a test deletes (``--allow-snapshot-deletion``) stays on the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_sandbox.plugin import artifacts

if TYPE_CHECKING:
    import pytest

__all__ = ["register"]


def register(config: pytest.Config) -> None:
    """Add the pattern."""
    if config.getoption("snapshot_update"):
        artifacts.add_pattern(config, "**/snapshots/**")
