"""The schema of a serialised report, as the hook ``pytest_report_to_serializable`` returns it.

messages.py uses it for the reports of a test process. The fields are those that pytest, and the
plugins that this one supports, write into a report and read from it.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from pytest_sandbox.plugin import schema
from pytest_sandbox.plugin.report_attributes import LEFT_OUT, typed
from pytest_sandbox.plugin.schema import InvalidError
from pytest_sandbox.plugin.user_properties import is_of_container
from pytest_sandbox.printable import printable_output

__all__ = ["KNOWN", "report"]

_NAME = schema.string(1000)
_PATH = schema.string(4096)
_LONG_NAME = 1 << 16
_TEXT = schema.string(4 << 20)
#: Text in which pytest shows colours, such as the difference of two values.
_COLOURED = schema.string(4 << 20, escape=printable_output)
_LINES = schema.list_of(_COLOURED, 50_000)
_LINE_NUMBER = schema.integer(-1, 1 << 31)
_ATTRIBUTE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_STYLE = schema.one_of("long", "short", "line", "no", "native", "value", "auto")

_FILE_LOCATION = schema.record({"path": _PATH, "lineno": _LINE_NUMBER, "message": _COLOURED})
_ARGUMENTS = schema.record({"args": schema.list_of(schema.tuple_of(_NAME, _TEXT), 10_000)})
_ENTRY = schema.record(
    {
        "type": schema.one_of("ReprEntry"),
        "data": schema.record(
            {
                "lines": _LINES,
                "reprfuncargs": schema.optional(_ARGUMENTS),
                "reprlocals": schema.optional(schema.record({"lines": _LINES})),
                "reprfileloc": schema.optional(_FILE_LOCATION),
                "style": _STYLE,
            }
        ),
    }
)
_NATIVE_ENTRY = schema.record(
    {
        "type": schema.one_of("ReprEntryNative"),
        "data": schema.record({"lines": _LINES}, {"style": _NAME}),
    }
)


def _entry(value: Any) -> Any:
    is_native = type(value) is dict and value.get("type") == "ReprEntryNative"
    return (_NATIVE_ENTRY if is_native else _ENTRY)(value)


_TRACEBACK = schema.record(
    {
        "reprentries": schema.list_of(_entry, 10_000),
        "extraline": schema.optional(_TEXT),
        "style": _STYLE,
    }
)
_LINK_OF_CHAIN = schema.tuple_of(
    _TRACEBACK, schema.optional(_FILE_LOCATION), schema.optional(_TEXT)
)
_EXCEPTION = schema.record(
    {
        "reprcrash": schema.optional(_FILE_LOCATION),
        "reprtraceback": _TRACEBACK,
        "sections": schema.list_of(schema.tuple_of(_NAME, _TEXT, schema.string(10)), 1000),
        "chain": schema.optional(schema.list_of(_LINK_OF_CHAIN, 1000, min_length=1)),
    }
)
_SKIP_REASON = schema.tuple_of(_PATH, schema.optional(_LINE_NUMBER), _TEXT)


def _longrepr(value: Any) -> Any:
    if value is None:
        return None
    if type(value) is str:
        return _COLOURED(value)
    return _SKIP_REASON(value) if type(value) is list else _EXCEPTION(value)


_PROPERTIES = schema.list_of(schema.list_of(typed, 100), 10_000)


def _user_properties(value: Any) -> list[tuple[Any, ...]]:
    """Return the properties as tuples, without those that only the parent may set."""
    found = [tuple(one) for one in _PROPERTIES(value)]
    return [one for one in found if not is_of_container(one)]


_HTML_EXTRAS = schema.list_of(schema.dict_of(_NAME, schema.optional(_TEXT), 20), 1000)
_HTML_KEYS = {"name", "format_type", "content", "mime_type", "extension"}


def _html_extras(value: Any) -> Any:
    """Accept what pytest-html adds to a report; it expects each of these keys."""
    found = _HTML_EXTRAS(value)
    if any(_HTML_KEYS - one.keys() or one["format_type"] is None for one in found):
        raise InvalidError("lacks a key that pytest-html requires")
    return found


_REQUIRED = {
    "nodeid": schema.string(_LONG_NAME, escape=str),
    "location": schema.tuple_of(
        schema.string(4096, escape=str),
        schema.optional(_LINE_NUMBER),
        schema.string(_LONG_NAME, escape=str),
    ),
    "keywords": schema.dict_of(schema.string(_LONG_NAME), schema.any_json, 10_000),
    "outcome": schema.one_of("passed", "failed", "skipped"),
    "longrepr": _longrepr,
    "when": schema.one_of("setup", "call", "teardown"),
    "user_properties": _user_properties,
    "sections": schema.list_of(schema.tuple_of(_NAME, _COLOURED), 1000),
    "duration": schema.number,
}
_OTHERS = {
    "$report_type": schema.one_of("TestReport"),
    "start": schema.number,
    "stop": schema.number,
    "wasxfail": _TEXT,
    "_hypothesis_stats": _TEXT,
    "extras": _html_extras,
    "extra": _html_extras,
    "_report_type": schema.one_of("SubTestReport"),
    "_subtest.context": schema.record(
        {"msg": schema.optional(_TEXT), "kwargs": schema.dict_of(_NAME, schema.scalar, 1000)}
    ),
}
#: The fields that have a schema of their own.
KNOWN = {**_REQUIRED, **_OTHERS}
_KNOWN_FIELDS = schema.record(_REQUIRED, _OTHERS)


def report(value: Any) -> dict[str, Any]:
    """Accept a serialised report.

    Other attributes may have any value that is data, under names that a report does not use itself.
    """
    if type(value) is not dict:
        raise InvalidError("must be an object")
    others = {name: one for name, one in value.items() if name not in KNOWN}
    checked: dict[str, Any] = _KNOWN_FIELDS({n: value[n] for n in value.keys() - others.keys()})
    kept = {name: one for name, one in others.items() if not name.startswith(LEFT_OUT)}
    checked.update((_attribute(name), typed(one)) for name, one in kept.items())
    _check_outcome(checked)
    return checked


def _attribute(name: str) -> str:
    if not _ATTRIBUTE.fullmatch(name) or name == "node" or hasattr(pytest.TestReport, name):
        raise InvalidError(f"has the unknown entry {schema.safe_text(name[:40])!r}")
    return name


def _check_outcome(found: dict[str, Any]) -> None:
    """Reject combinations of fields that pytest and its reporters assert not to occur."""
    longrepr, outcome = found["longrepr"], found["outcome"]
    if outcome == "failed" and longrepr is None:
        raise InvalidError(".longrepr is null, but the test has failed")
    if outcome == "skipped" and "wasxfail" not in found and type(longrepr) is not tuple:
        raise InvalidError(".longrepr must be path, line and reason of the skip")
    if ("_report_type" in found) != ("_subtest.context" in found):
        raise InvalidError("has only a part of the fields of a subtest's report")
    if ("_report_type" in found) == ("$report_type" in found):
        raise InvalidError("must be the report of either a test or a subtest")
