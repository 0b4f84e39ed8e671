"""``--sandbox-keep``: the writable layer of a test, to look at afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from pytest_sandbox.container import Container

__all__ = ["keep"]


def keep(item: pytest.Item, container: Container, *, failed: bool) -> str | None:
    """Keep a container's layer if that is wanted; returns the name that ``pytest-sandbox shell`` opens it by."""
    wanted = item.config.getoption("sandbox_keep")
    if wanted == "none" or (wanted == "failed" and not failed):
        return None
    from pytest_sandbox.container import kept

    return kept.keep(container).id
