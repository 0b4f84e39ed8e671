"""pytest-regressions and pytest-datadir: the expected files, which the first run and
``--force-regen`` write to a directory beside the test's module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_sandbox.plugin import artifacts

if TYPE_CHECKING:
    import pytest

__all__ = ["register"]


def register(config: pytest.Config) -> None:
    """Add the pattern."""
    artifacts.add_pattern(config, _directory)


def _directory(item: pytest.Item) -> str | None:
    uses = any(
        name.endswith(("_regression", "datadir")) for name in getattr(item, "fixturenames", ())
    )
    return f"{item.path.with_suffix('')}/**" if uses else None
