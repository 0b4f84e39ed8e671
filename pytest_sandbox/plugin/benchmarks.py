"""What pytest-benchmark measured in a fork, for its tables and files in the parent."""

from __future__ import annotations

import base64
import importlib
import math
from array import array
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

    from pytest_sandbox.plugin.report_channel import Receiver, Wire

__all__ = ["Benchmarks", "merge", "times"]

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
        """Send what was measured in this fork; a profile (``--benchmark-cprofile``) stays
        behind.
        """
        for one in _measured(self._item.config)[self._before :]:
            options = {name: value for name, value in one.options.items() if name != "timer"}
            facts = {name: getattr(one, name) for name in _FACTS}
            has_error = one.has_error
            times = base64.b64encode(array("d", one.stats.data)).decode()  # there may be 100,000
            data = {
                "facts": facts,
                "options": options,
                "iterations": one.iterations,
                "times": times,
                "has_error": has_error,
            }
            wire.send("benchmark", data)


def merge(item: pytest.Item, receiver: Receiver) -> None:
    """Add what a fork measured to pytest-benchmark's own list."""
    for data in receiver.of("benchmark"):
        metadata: Any = importlib.import_module("pytest_benchmark.stats").Metadata
        session = item.config.pluginmanager.getplugin("pytest-benchmark")
        if session is None:
            return
        params = getattr(getattr(item, "callspec", None), "params", None)
        facts = {**data["facts"], "name": item.name, "fullname": item.nodeid}
        measured = SimpleNamespace(
            **facts, params=params, cprofile_stats=None, has_error=data["has_error"]
        )
        timer = session.options["timer"].target
        made = metadata(measured, data["iterations"], {**data["options"], "timer": timer})
        for seconds in data["times"]:
            made.stats.update(seconds)
        session.benchmarks.append(made)


def times(text: str) -> array[float]:
    """Return the durations that were sent, in seconds.

    Raises :class:`ValueError` for what is none.
    """
    found = array("d", base64.b64decode(text, validate=True))
    if not found or not all(map(math.isfinite, found)):
        raise ValueError("no durations")
    return found
