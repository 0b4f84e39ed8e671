"""What a test inside changes in the session, beside its reports: recorded in the fork, done again
in the parent.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pytest_sandbox.plugin import compat

if TYPE_CHECKING:
    import pytest

    from pytest_sandbox.plugin.report_channel import Receiver, Wire

__all__ = ["Carried", "apply"]


class Carried:
    """The fork's side: knows how things stood before it, and sends what is new at the end."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._subtests = compat.failed_subtests(item)
        self._wishes = _wishes(item.session)
        self._xml = compat.junit_xml(item.config)
        self._properties = len(self._xml.global_properties) if self._xml is not None else 0

    def send(self, wire: Wire) -> None:
        """Send what is new."""
        failed = compat.failed_subtests(self._item) - self._subtests
        if failed:
            wire.send("subtests", failed)
        wishes = _wishes(self._item.session)
        if wishes != self._wishes:
            wire.send("wishes", wishes)
        if self._xml is not None:
            attributes = self._xml.node_reporter(self._item.nodeid).attrs
            wire.send("junit", [self._xml.global_properties[self._properties :], attributes])


def _wishes(session: pytest.Session) -> list[Any]:
    return [session.shouldstop, session.shouldfail]


def apply(item: pytest.Item, receiver: Receiver) -> None:
    """Do in the parent what the fork sent."""
    for key, value in receiver.of("cache"):
        if item.config.cache is not None:
            item.config.cache.set(
                key, value
            )  # messages.py has let no key pass that leads elsewhere
    for count in receiver.of("subtests"):
        compat.add_failed_subtests(item, count)
    for stop, fail in receiver.of("wishes"):
        item.session.shouldstop = item.session.shouldstop or stop
        item.session.shouldfail = item.session.shouldfail or fail
    xml = compat.junit_xml(item.config)
    for properties, attributes in receiver.of("junit"):
        for name, value in properties:
            xml.add_global_property(name, value)
        for name, value in attributes.items():
            xml.node_reporter(item.nodeid).add_attribute(name, value)
    for data in receiver.of("warning"):
        _announce(item, data)
    for name, scope in receiver.of("late_fixture"):
        _announce_late_fixture(item, name, scope)


def _announce(item: pytest.Item, data: dict[str, Any]) -> None:
    import warnings

    message = data["message"]
    recorded = warnings.WarningMessage(
        message,
        type(message),
        data["filename"],
        data["lineno"],
        line=_line_of(data["filename"], data["lineno"]),
    )
    arguments = {
        "warning_message": recorded,
        **{name: data[name] for name in ("when", "nodeid", "location")},
    }
    item.ihook.pytest_warning_recorded.call_historic(kwargs=arguments)


def _line_of(path: str, number: int) -> str:
    """Return the line of a source file that a warning names, for the terminal would open whatever
    path it is.

    Only of a module that this process has imported: anything else could be a FIFO, or nobody's to
    show.
    """
    import linecache

    if any(getattr(module, "__file__", None) == path for module in list(sys.modules.values())):
        return linecache.getline(path, number)
    return ""


def _announce_late_fixture(item: pytest.Item, name: str, scope: str) -> None:
    import warnings

    import pytest

    text = (
        f"the {scope}-scoped fixture {name!r} was asked for by getfixturevalue() inside the "
        "test's container, so it was made for this test alone: "
        f"name it as an argument or in usefixtures() to have it made once"
    )
    path, line, _name = item.location
    recorded = warnings.WarningMessage(
        pytest.PytestWarning(text), pytest.PytestWarning, path, (line or 0) + 1
    )
    arguments = {
        "warning_message": recorded,
        "when": "runtest",
        "nodeid": item.nodeid,
        "location": None,
    }
    item.ihook.pytest_warning_recorded.call_historic(kwargs=arguments)
