"""pytest-json-report: the output, log and metadata of each phase, which it keeps on the item."""

from __future__ import annotations

import json
from typing import Any

import pytest

__all__ = ["register"]

_encode = json.JSONEncoder(default=str).encode  # a test may replace json.dumps
_decode = json.loads


def register(config: pytest.Config) -> None:
    """Register the adapter."""
    config.pluginmanager.register(_Adapter(), f"sandbox-{__name__}")


class _Adapter:
    def __init__(self) -> None:
        self._details: dict[str, Any] = {}

    def pytest_sandbox_carry(self, item: pytest.Item) -> Any:
        """Return the details of all phases; values that JSON lacks become text."""
        return _decode(_encode(getattr(item, "_json_report_extra", None)))

    def pytest_sandbox_carried(self, item: pytest.Item, data: Any) -> None:
        """Remember the details until the test is reported."""
        if type(data) is not dict or not all(type(one) is dict for one in data.values()):
            raise ValueError("the details of pytest-json-report are not objects")
        self._details = {item.nodeid: data}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add the details to a report, before pytest-json-report looks for them."""
        details = self._details.get(report.nodeid)
        if details is not None:
            report._json_report_extra = details  # type: ignore[attr-defined]
