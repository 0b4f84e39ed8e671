"""The measurements of pytest-benchmark: sent by the test process, added to the session's tables and
files in the parent.
"""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pytest_sandbox.plugin.packed_numbers import pack

if TYPE_CHECKING:
    import pytest

    from pytest_sandbox.plugin.report_channel import Receiver, ReportChannel

__all__ = ["BenchmarkSender", "merge"]

_FACTS = ("name", "fullname", "group", "param", "extra_info")


def _benchmarks(config: pytest.Config) -> list[Any]:
    session = config.pluginmanager.getplugin("pytest-benchmark")
    found: list[Any] = getattr(session, "benchmarks", [])
    return found


class BenchmarkSender:
    """The side of the test process. Created before the fork, it knows what was measured earlier."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._count_before = len(_benchmarks(item.config))

    def send(self, channel: ReportChannel) -> None:
        """Send what was measured in this process, without profiles (``--benchmark-cprofile``)."""
        for one in _benchmarks(self._item.config)[self._count_before :]:
            data = {
                "facts": {name: getattr(one, name) for name in _FACTS},
                # The timer is a function, which merge() takes from the parent.
                "options": {name: value for name, value in one.options.items() if name != "timer"},
                "iterations": one.iterations,
                "durations": pack("d", one.stats.data),
                "has_error": one.has_error,
            }
            channel.send("benchmark", data)


def merge(item: pytest.Item, receiver: Receiver) -> None:
    """Add received measurements to pytest-benchmark's own list in the parent."""
    for data in receiver.of_kind("benchmark"):
        session = item.config.pluginmanager.getplugin("pytest-benchmark")
        if session is None:
            return
        metadata: Any = importlib.import_module("pytest_benchmark.stats").Metadata
        params = getattr(getattr(item, "callspec", None), "params", None)
        facts = {**data["facts"], "name": item.name, "fullname": item.nodeid}
        fixture = SimpleNamespace(
            **facts, params=params, cprofile_stats=None, has_error=data["has_error"]
        )
        timer = session.options["timer"].target
        made = metadata(fixture, data["iterations"], {**data["options"], "timer": timer})
        for seconds in data["durations"]:
            made.stats.update(seconds)
        session.benchmarks.append(made)
