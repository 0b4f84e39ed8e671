"""A container that cannot be made: an error of the test's setup that says why, or a skip where the
suite prefers that.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox import supported
from pytest_sandbox.errors import SandboxError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NoContainers", "refusing"]


@contextmanager
def refusing(config: pytest.Config) -> Iterator[None]:
    """Turn an error of making a container into the test's outcome, by ``sandbox_unsupported``."""
    try:
        yield
    except UnsupportedError as error:
        if config.getini("sandbox_unsupported") == "skip":
            raise pytest.skip.Exception(f"sandbox: {error}") from None
        text = f"{error} (sandbox_unsupported = skip skips such tests)"
        raise pytest.fail.Exception(text, pytrace=False) from None
    except SandboxError as error:
        raise pytest.fail.Exception(f"{type(error).__name__}: {error}", pytrace=False) from None


class NoContainers:
    """In place of what runs tests inside, on an operating system that has no containers."""

    def __init__(self, inside: pytest.StashKey[bool]) -> None:
        self._inside = inside

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Fail or skip a test that belongs inside."""
        if item.stash.get(self._inside, False):
            with refusing(item.config):
                supported.require()
