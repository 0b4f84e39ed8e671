"""``@pytest.mark.needs("root", "memory")`` skips where the host lacks one of them."""

from __future__ import annotations

import pytest
from capabilities import has


def wanted(item: pytest.Item) -> set[str]:
    return {capability for mark in item.iter_markers("needs") for capability in mark.args}


def keep_what_the_lane_promises(config: pytest.Config, items: list[pytest.Item], promised: set[str]) -> None:
    """Deselect what needs more than the lane's host has; what is left is not skipped by probing, so that a lost capability fails."""
    beyond = [item for item in items if not wanted(item) <= promised]
    config.hook.pytest_deselected(items=beyond)
    items[:] = [item for item in items if wanted(item) <= promised]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    promised = config.getoption("--host-has")
    if promised is not None:
        keep_what_the_lane_promises(config, items, set(promised.split(",")))
        return
    for item in items:
        lacking = sorted(capability for capability in wanted(item) if not has(capability))
        if lacking:
            item.add_marker(pytest.mark.skip(reason=f"this host lacks {', '.join(lacking)}"))
