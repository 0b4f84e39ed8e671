"""What pytest-benchmark measured in a fork, for its tables and files in the parent."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

    from pytest_sandbox.plugin.wire import Receiver, Wire

__all__ = ["Benchmarks", "merge"]

_FACTS = ("name", "fullname", "group", "param", "extra_info")


def _measured(config: pytest.Config) -> list[Any]:
    session = config.pluginmanager.getplugin("pytest-benchmark")
    found: list[Any] = getattr(session, "benchmarks", [])
    return found


class Benchmarks:
    """The fork's side."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._before = len(_measured(item.config))

    def send(self, wire: Wire) -> None:
        """Send what was measured in this fork; a profile (``--benchmark-cprofile``) stays behind."""
        for one in _measured(self._item.config)[self._before :]:
            options = {name: value for name, value in one.options.items() if name != "timer"}
            facts = {name: getattr(one, name) for name in _FACTS}
            has_error = one.has_error
            data = {"facts": facts, "options": options, "iterations": one.iterations, "times": one.stats.data, "has_error": has_error}
            wire.send("benchmark", data)


def merge(item: pytest.Item, receiver: Receiver) -> None:
    """Add what a fork measured to pytest-benchmark's own list."""
    for data in receiver.of("benchmark"):
        metadata: Any = importlib.import_module("pytest_benchmark.stats").Metadata
        session = item.config.pluginmanager.getplugin("pytest-benchmark")
        params = getattr(getattr(item, "callspec", None), "params", None)
        measured = SimpleNamespace(**data["facts"], params=params, cprofile_stats=None, has_error=data["has_error"])
        timer = session.options["timer"].target
        made = metadata(measured, data["iterations"], {**data["options"], "timer": timer})
        for seconds in data["times"]:
            made.stats.update(seconds)
        session.benchmarks.append(made)
