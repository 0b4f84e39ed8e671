"""allure-pytest: steps, attachments, parameters and the like, which a test has recorded inside.

Attachments and the containers of function-scoped fixtures are files that the test process writes.
The result of the test is written by the parent, which takes its content from the test process.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pytest_sandbox.plugin import artifacts

if TYPE_CHECKING:
    import pytest

__all__ = ["register"]

#: What the parent keeps: the ID under which the test process has named the test in other files.
_OWN = {"uuid"}


def register(config: pytest.Config) -> None:
    """Register the adapter."""
    listener = config.pluginmanager.get_plugin("allure_listener")
    config.pluginmanager.register(_Adapter(config, listener), f"sandbox-{__name__}")
    directory = os.path.abspath(config.getoption("allure_report_dir"))
    artifacts.add_pattern(config, f"{directory}/**")


class _Adapter:
    def __init__(self, config: pytest.Config, listener: Any) -> None:
        self._config = config
        self._listener = listener
        self._fixtures = import_module("allure_pytest.listener")._test_fixtures
        self._fields = [
            one.name for one in import_module("allure_commons.model2").TestResult.__attrs_attrs__
        ]
        self._asdict = import_module("attr").asdict
        self._item: pytest.Item | None = None
        self._data: dict[str, Any] | None = None
        self._definitions: list[Any] = []
        self._attach_capture = config.option.attach_capture

    def _result(self, item: pytest.Item) -> Any:
        uuid = self._listener._cache.get(item.nodeid)
        return self._listener.allure_logger.get_test(uuid) if uuid else None

    def pytest_sandbox_carry(self, item: pytest.Item) -> Any:
        """Return the result, in the form in which it is written."""
        result = self._result(item)
        return result and self._asdict(result, filter=lambda _, value: value or value is False)

    def pytest_sandbox_carried(self, item: pytest.Item, data: Any) -> None:
        """Remember the result until the phases are over: they overwrite parts of the parent's."""
        self._item, self._data = item, _checked(data)
        self._config.option.attach_capture = False  # the test process has attached the output

    def pytest_runtest_logfinish(self) -> None:
        """Replace the parent's result, which is written now."""
        self._forget_fixtures()
        item, data = self._item, self._data
        self._item = self._data = None
        self._config.option.attach_capture = self._attach_capture
        if item is None or data is None:
            return
        result = self._result(item)
        for name in self._fields:
            if name not in _OWN and name in data:
                setattr(result, name, data[name])

    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        """Remember the fixtures, which the item does not have any more at its end."""
        self._definitions = self._fixtures(item)

    def _forget_fixtures(self) -> None:
        """Remove the containers of fixtures that were set up inside: the next test has others."""
        for definition in self._definitions:
            uuid = definition.scope == "function" and self._listener._cache.pop(definition)
            if uuid:
                self._listener.allure_logger._items.pop(uuid)


def _checked(data: Any) -> dict[str, Any]:
    """Return the result of a test process; refuse attachments outside of the report's directory."""
    if type(data) is not dict:
        raise ValueError("allure's result of the test is not an object")
    _check_sources(data)
    return data


def _check_sources(value: Any) -> None:
    if type(value) is dict:
        source = value.get("source", "")
        if type(source) is not str or "/" in source:
            raise ValueError(f"allure's attachment {source!r} is not a name")
    if type(value) in {dict, list}:
        for one in value.values() if type(value) is dict else value:
            _check_sources(one)
