"""The schema of a serialised report, as ``pytest_report_to_serializable`` writes it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pytest_sandbox.plugin.display import escaped, escaped_output
from pytest_sandbox.plugin.report_sections import is_ours
from pytest_sandbox.plugin.schema import (
    InvalidError,
    anything,
    each,
    integer,
    items,
    mapping,
    number,
    one_of,
    optional,
    record,
    scalar,
    text,
)

__all__ = ["report"]

_NAME = 1000
_PATH = 4096
_TEXT = 4 << 20
_MOST_LINES = 50_000
_LINE = text(_TEXT)
_LINE_NUMBER = integer(-1, 1 << 31)
_ATTRIBUTE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")

_FILE_LOCATION = record({"path": text(_PATH), "lineno": _LINE_NUMBER, "message": _LINE})
_ENTRY = record(
    {
        "type": one_of("ReprEntry"),
        "data": record(
            {
                "lines": each(_LINE, _MOST_LINES),
                "reprfuncargs": optional(record({"args": each(items(text(_NAME), _LINE), 10_000)})),
                "reprlocals": optional(record({"lines": each(_LINE, _MOST_LINES)})),
                "reprfileloc": optional(_FILE_LOCATION),
                "style": one_of("long", "short", "line", "no", "native", "value", "auto"),
            }
        ),
    }
)
_NATIVE_ENTRY = record(
    {
        "type": one_of("ReprEntryNative"),
        "data": record({"lines": each(_LINE, _MOST_LINES)}, {"style": text(_NAME)}),
    }
)


def _entry(value: Any) -> Any:
    is_native = type(value) is dict and value.get("type") == "ReprEntryNative"
    return (_NATIVE_ENTRY if is_native else _ENTRY)(value)


_TRACEBACK = record(
    {
        "reprentries": each(_entry, 10_000),
        "extraline": optional(_LINE),
        "style": one_of("long", "short", "line", "no", "native", "value", "auto"),
    }
)
_EXCEPTION = record(
    {
        "reprcrash": optional(_FILE_LOCATION),
        "reprtraceback": _TRACEBACK,
        "sections": each(items(text(_NAME), _LINE, text(10)), 1000),
        "chain": optional(
            each(items(_TRACEBACK, optional(_FILE_LOCATION), optional(_LINE)), 1000, least=1)
        ),
    }
)
_REASON = items(text(_PATH), optional(_LINE_NUMBER), _LINE)


def _longrepr(value: Any) -> Any:
    if value is None:
        return None
    if type(value) is str:
        return _LINE(value)
    return _REASON(value) if type(value) is list else _EXCEPTION(value)


def _properties(value: Any) -> list[tuple[Any, ...]]:
    """Return tuples, without those that only the parent may set."""
    found = [tuple(one) for one in each(each(anything, 100), 10_000)(value)]
    if any(type(name) in {list, dict} for name, *_ in filter(None, found)):
        raise InvalidError("has a name that is no scalar")
    return [one for one in found if not is_ours(one)]


_EXTRA_OF_HTML = each(
    mapping(text(_NAME), optional(text(_TEXT)), 20),
    1000,
)


def _extras_of_html(value: Any) -> Any:
    """Accept what pytest-html puts into a report; it relies on each of these names."""
    found = _EXTRA_OF_HTML(value)
    wanted = {"name", "format_type", "content", "mime_type", "extension"}
    if any(not wanted <= one.keys() or one["format_type"] is None for one in found):
        raise InvalidError("lacks what pytest-html needs")
    return found


_FIELDS = {
    "nodeid": text(1 << 16, show=str),
    "location": items(text(_PATH, show=str), optional(_LINE_NUMBER), text(1 << 16, show=str)),
    "keywords": mapping(text(1 << 16), anything, 10_000),
    "outcome": one_of("passed", "failed", "skipped"),
    "longrepr": _longrepr,
    "when": one_of("setup", "call", "teardown"),
    "user_properties": _properties,
    "sections": each(items(text(_NAME), text(_TEXT, show=escaped_output)), 1000),
    "duration": number,
}
_OTHERS = {
    "$report_type": one_of("TestReport"),
    "start": number,
    "stop": number,
    "wasxfail": text(_TEXT),
    "_hypothesis_stats": text(_TEXT),
    "extras": _extras_of_html,
    "extra": _extras_of_html,
    "_report_type": one_of("SubTestReport"),
    "_subtest.context": record(
        {
            "msg": optional(text(_TEXT)),
            "kwargs": mapping(text(_NAME), scalar, 1000),
        }
    ),
}
_KNOWN = {**_FIELDS, **_OTHERS}


def report(value: Any) -> dict[str, Any]:
    """Accept a serialised report.

    Further attributes may be any plain data, under names that no report has already; private ones
    are left out: among them Hypothesis' failing examples, which it writes to a file in the parent.
    """
    if type(value) is not dict:
        raise InvalidError("must be an object")
    further = {name: one for name, one in value.items() if name not in _KNOWN}
    checked: dict[str, Any] = _KNOWN_RECORD({n: value[n] for n in value.keys() - further.keys()})
    public = {name: one for name, one in further.items() if not name.startswith("_")}
    checked.update((_attribute(name), anything(one)) for name, one in public.items())
    _check_outcome(checked)
    return checked


_KNOWN_RECORD = record(_FIELDS, _OTHERS)


def _attribute(name: str) -> str:
    if not _ATTRIBUTE.fullmatch(name) or name == "node" or hasattr(pytest.TestReport, name):
        raise InvalidError(f"has the unknown entry {escaped(name[:40])!r}")
    return name


def _check_outcome(found: dict[str, Any]) -> None:
    """Refuse what pytest's own users of a report assert not to be."""
    longrepr, outcome = found["longrepr"], found["outcome"]
    if outcome == "failed" and longrepr is None:
        raise InvalidError(".longrepr is missing, and the test has failed")
    if outcome == "skipped" and "wasxfail" not in found and type(longrepr) is not tuple:
        raise InvalidError(".longrepr must be path, line and reason of the skip")
    if ("_report_type" in found) != ("_subtest.context" in found):
        raise InvalidError("is half a subtest")
    if ("_report_type" in found) == ("$report_type" in found):
        raise InvalidError("must be a test's or a subtest's")
