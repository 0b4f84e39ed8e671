"""pytest-bdd: the steps of a scenario, for its cucumber report and its terminal reporter."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

__all__ = ["register"]


def register(config: pytest.Config) -> None:
    """Register the adapter."""
    config.pluginmanager.register(_Adapter(), f"sandbox-{__name__}")


#: The types of values, as pytest-bdd writes them in its annotations.
_TYPES: dict[str, Any] = {
    "str": str,
    "int": int,
    "bool": bool,
    "float": (int, float),
    "list[str]": list,
}


def _check(data: Any, declared: Any) -> None:
    """Raise TypeError unless an object has the entries of a TypedDict: pytest-bdd would fail at the
    end of the session.
    """
    for name, annotation in declared.__annotations__.items():
        text = getattr(annotation, "__forward_arg__", str(annotation))
        if text.startswith("NotRequired"):
            continue
        value = data.get(name) if type(data) is dict else None
        if not isinstance(value, _TYPES.get(text, (list, dict))):
            raise TypeError(f"{name} of a scenario of pytest-bdd is not of the type {text}")
        if text == "list[str]" and not all(type(one) is str for one in value):
            raise TypeError(f"{name} of a scenario of pytest-bdd has a value that is not text")


class _Adapter:
    def __init__(self) -> None:
        self._reporting: Any = import_module("pytest_bdd.reporting")
        self._scenarios: dict[str, Any] = {}

    def pytest_sandbox_carry(self, item: pytest.Item) -> Any:
        """Return the scenario with its steps; None for an ordinary test."""
        found = self._reporting.scenario_reports_registry.get(item)
        return None if found is None else found.serialize()

    def pytest_sandbox_carried(self, item: pytest.Item, data: Any) -> None:
        """Remember the scenario until the test is reported."""
        report = self._reporting
        _check(data, report.ScenarioReportDict)
        _check(data["feature"], report.FeatureDict)
        for step in data["steps"]:
            _check(step, report.StepReportDict)
        self._scenarios = {item.nodeid: data}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add the scenario to a report, before pytest-bdd looks for it."""
        scenario = self._scenarios.get(report.nodeid)
        if scenario is not None:
            name = report.nodeid.rpartition("::")[2]
            context = self._reporting.ReportContext(scenario=scenario, name=name)
            self._reporting.test_report_context_registry[report] = context
