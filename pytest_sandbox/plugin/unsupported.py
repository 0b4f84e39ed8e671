"""The result of a test whose container cannot be created: an error of its setup, or a skip with
``sandbox_unsupported = skip``.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox import supported
from pytest_sandbox.errors import SandboxError, UnsupportedError
from pytest_sandbox.plugin.stash import INSIDE

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NoContainers", "as_test_result", "skip"]


@contextmanager
def as_test_result(config: pytest.Config) -> Iterator[None]:
    """Turn a :class:`SandboxError` into a failure or a skip of the test."""
    try:
        yield
    except UnsupportedError as error:
        if config.getini("sandbox_unsupported") == "skip":
            raise pytest.skip.Exception(f"sandbox: {error}") from None
        text = f"{error} (sandbox_unsupported = skip skips such tests)"
        raise pytest.fail.Exception(text, pytrace=False) from None
    except SandboxError as error:
        raise pytest.fail.Exception(f"{type(error).__name__}: {error}", pytrace=False) from None


def skip(config: pytest.Config, call: pytest.CallInfo[None]) -> None:
    """Turn an :class:`UnsupportedError` of a phase into a skip, if the configuration says so."""
    error = None if call.excinfo is None else call.excinfo.value
    if not isinstance(error, UnsupportedError):
        return
    if config.getini("sandbox_unsupported") == "skip":
        call.excinfo = pytest.CallInfo.from_call(lambda: _raise(config, error), call.when).excinfo


def _raise(config: pytest.Config, error: UnsupportedError) -> None:
    with as_test_result(config):
        raise error


class NoContainers:
    """The plugin that replaces protocol.py on an operating system without containers."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Fail or skip a test that should run inside."""
        if item.stash.get(INSIDE, False):
            with as_test_result(item.config):
                supported.require()
