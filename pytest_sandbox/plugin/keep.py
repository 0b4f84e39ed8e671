"""The option ``--sandbox-keep``: save a test's writable layer for ``pytest-sandbox shell``."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.errors import SandboxError

if TYPE_CHECKING:
    from pytest_sandbox.container.container import Container

__all__ = ["keep_layer"]


def keep_layer(item: pytest.Item, container: Container, *, failed: bool) -> str | None:
    """Save a container's writable layer if the option asks for it.

    Returns the ID by which ``pytest-sandbox shell`` opens it. Warns if it cannot be saved.
    """
    wanted = item.config.getoption("sandbox_keep")
    if wanted == "none" or (wanted == "failed" and not failed):
        return None
    from pytest_sandbox.container import saved_layers

    try:
        return saved_layers.save(container.handle).id
    except SandboxError as error:
        with suppress(pytest.PytestWarning):  # raised under -W error: the report would be lost
            item.warn(pytest.PytestWarning(str(error)))
        return None
