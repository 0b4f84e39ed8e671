"""A container that cannot be made: an error of the test's setup that says why, or a skip where the suite prefers that."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.errors import SandboxError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["refusing"]


@contextmanager
def refusing(config: pytest.Config) -> Iterator[None]:
    """Turn an error of making a container into the test's outcome, by ``sandbox_unsupported``."""
    try:
        yield
    except UnsupportedError as error:
        if config.getini("sandbox_unsupported") == "skip":
            pytest.skip(f"sandbox: {error}")
        pytest.fail(f"{error} (sandbox_unsupported = skip skips such tests)", pytrace=False)
    except SandboxError as error:
        pytest.fail(f"{type(error).__name__}: {error}", pytrace=False)
