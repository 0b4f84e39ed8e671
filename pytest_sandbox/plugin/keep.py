"""``--sandbox-keep``: the writable layer of a test, to look at afterwards."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.errors import SandboxError

if TYPE_CHECKING:
    from pytest_sandbox.container.container import Container

__all__ = ["keep"]


def keep(item: pytest.Item, container: Container, *, failed: bool) -> str | None:
    """Keep a container's layer if that is wanted; returns the name that ``pytest-sandbox shell``
    opens it by.
    """
    wanted = item.config.getoption("sandbox_keep")
    if wanted == "none" or (wanted == "failed" and not failed):
        return None
    from pytest_sandbox.container import saved_layers

    try:
        return saved_layers.save(container.handle).id
    except SandboxError as error:
        with suppress(pytest.PytestWarning):  # as an error it would take the report along
            item.warn(pytest.PytestWarning(str(error)))
        return None
