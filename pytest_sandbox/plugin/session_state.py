"""What a test changes in the session besides its reports: the cache, failed subtests, the wish to
stop, junit XML, warnings, imported modules.

The test process sends the changes (:class:`SessionState`, and HookForwarder of test_process.py for
the cache and warnings); protocol.py calls :func:`apply` to repeat them in the parent.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pytest_sandbox.plugin import compat, imported_modules, repeated_imports

if TYPE_CHECKING:
    import pytest

    from pytest_sandbox.plugin.report_channel import Receiver, ReportChannel

__all__ = ["SessionState", "apply", "apply_to_session", "warn"]


class SessionState:
    """The side of the test process. Created before the fork, it knows the earlier state."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._failed_subtests = compat.failed_subtests(item)
        self._stop = _stop_reasons(item.session)
        self._xml = compat.junit_xml(item.config)
        self._properties = len(self._xml.global_properties) if self._xml is not None else 0
        self._imports = imported_modules.ImportSender()

    def send(self, channel: ReportChannel) -> None:
        """Send what has changed."""
        failed = compat.failed_subtests(self._item) - self._failed_subtests
        if failed:
            channel.send("subtests", failed)
        stop = _stop_reasons(self._item.session)
        if stop != self._stop:
            channel.send("session_stop", stop)
        if self._xml is not None:
            attributes = self._xml.node_reporter(self._item.nodeid).attrs
            new_properties = self._xml.global_properties[self._properties :]
            channel.send("junit", [new_properties, attributes])
        self._imports.send(channel)


def _stop_reasons(session: pytest.Session) -> list[Any]:
    return [session.shouldstop, session.shouldfail]


def apply(item: pytest.Item, receiver: Receiver) -> None:
    """Make the received changes in the parent."""
    apply_to_session(item, receiver)
    for count in receiver.of_kind("subtests"):
        compat.add_failed_subtests(item, count)
    xml = compat.junit_xml(item.config)
    for _properties, attributes in receiver.of_kind("junit"):
        for name, value in attributes.items():
            xml.node_reporter(item.nodeid).add_attribute(name, value)


def apply_to_session(item: pytest.Item, receiver: Receiver) -> None:
    """Make the received changes that are not about the result of a test."""
    config = item.config
    for key, value in receiver.of_kind("cache"):
        if config.cache is not None:
            config.cache.set(key, value)  # messages.py allows no path outside of the cache
    for stop, fail in receiver.of_kind("session_stop"):
        item.session.shouldstop = item.session.shouldstop or stop
        item.session.shouldfail = item.session.shouldfail or fail
    xml = compat.junit_xml(config)
    for properties, _attributes in receiver.of_kind("junit"):
        for name, value in properties:
            xml.add_global_property(name, value)
    for data in receiver.of_kind("warning"):
        _announce(item, data)
    for name, scope in receiver.of_kind("late_fixture"):
        _warn_of_late_fixture(item, name, scope)
    imported_modules.import_in_parent(receiver)
    repeated_imports.record(config, receiver)


def _announce(item: pytest.Item, data: dict[str, Any]) -> None:
    import warnings

    message, path, line = data["message"], data["filename"], data["lineno"]
    recorded = warnings.WarningMessage(
        message, type(message), path, line, line=_source_line(path, line)
    )
    arguments = {name: data[name] for name in ("when", "nodeid", "location")}
    _record(item, recorded, **arguments)


def _source_line(path: str, number: int) -> str:
    """Return a line of the source file that a warning names; "" if it is not the file of a module
    that this process has imported.

    pytest's terminal reporter would open any path: a FIFO, or a file that the test may not read.
    """
    import linecache

    if any(getattr(module, "__file__", None) == path for module in list(sys.modules.values())):
        return linecache.getline(path, number)
    return ""


def _warn_of_late_fixture(item: pytest.Item, name: str, scope: str) -> None:
    text = (
        f"the {scope}-scoped fixture {name!r} was set up in the container of this test alone, "
        "because getfixturevalue() requested it there. To set it up once, name it as an argument "
        "of the test or in usefixtures()."
    )
    warn(item, text)


def warn(item: pytest.Item, text: str) -> None:
    """Show a warning about a test at the end of the session, whatever filters the session has."""
    import warnings

    import pytest

    path, line, _name = item.location
    recorded = warnings.WarningMessage(
        pytest.PytestWarning(text), pytest.PytestWarning, path, (line or 0) + 1
    )
    _record(item, recorded, when="runtest", nodeid=item.nodeid, location=None)


def _record(item: pytest.Item, warning: object, **arguments: Any) -> None:
    item.ihook.pytest_warning_recorded.call_historic(
        kwargs={"warning_message": warning, **arguments}
    )
