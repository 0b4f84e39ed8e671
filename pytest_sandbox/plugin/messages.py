"""The messages that a test process sends to its parent, and the schema of each.

The test process runs untrusted code, so any message may be forged. message_checker.py applies the
schemas, and checks what depends on the running test and on the order of the messages.

============  ======================================================================================
kind          data
============  ======================================================================================
report        a phase's report as pytest's hooks serialise it, the phase's exception as data, and
              the symptoms of isolation in it (hints.py)
passed        a phase that has passed and whose report has nothing of its own: phase, start, stop,
              duration. message_checker.py makes a message "report" of it
logged        a report that another plugin logged meanwhile (a subtest)
warning       a warning as data
debugger      true when a debugger starts to wait for input, false when it ends (wakes the parent)
timeout       the seconds after which pytest-timeout ends the test
cache         key and value that the test stored in ``config.cache``
subtests      the number of failed subtests
session_stop  ``session.shouldstop`` and ``session.shouldfail``
junit         properties of the suite and attributes of the test's element in junit XML
benchmark     the measurements of pytest-benchmark
carry         name of a plugin, and what its hook pytest_sandbox_carry has returned
connections   calls that connect or look up a name (connection_calls.py)
coverage      lines or arcs of one file in one context (coverage_data.py)
imported      names of modules of the standard library, and how many modules of other packages
              (imported_modules.py)
late_fixture  name and scope of a fixture of a higher scope that was set up in the test process
exit          the test ends the session (``pytest.exit``): reason and return code
internal      the traceback of an error outside of the test's phases
done          the last message of a test: whether files were created in the container, and whether
              the process waits for another test (wakes the parent)
============  ======================================================================================
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.container import values
from pytest_sandbox.plugin import report_schema, schema
from pytest_sandbox.plugin.packed_numbers import unpack
from pytest_sandbox.plugin.schema import InvalidError

if TYPE_CHECKING:
    from array import array
    from collections.abc import Mapping

    from pytest_sandbox.plugin.schema import Check

__all__ = ["MAX_CALLS", "MAX_IMPORTED", "MAX_MESSAGE_BYTES", "SCHEMAS"]

MAX_MESSAGE_BYTES = 4 << 20
#: More lines than any source file has.
_MAX_LINE = 10_000_000
#: Different calls of a test that connect or look up a name.
MAX_CALLS = 200
#: Modules of the standard library that a test imports. It has about 1,500.
MAX_IMPORTED = 2000
_NAME = schema.string(1000)
_PATH_LENGTH = 4096
_LONG_NAME = schema.string(1 << 16)
_TEXT = schema.string(MAX_MESSAGE_BYTES)
_PACKED = schema.string(MAX_MESSAGE_BYTES)
#: Names of attributes of XML elements. ElementTree writes any name unchanged.
_XML_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,99}")

# -- values that several kinds have, or that need more than a type


def _stop_reason(value: Any) -> bool | str:
    """Accept ``session.shouldstop`` or ``shouldfail``: false, true or a reason."""
    return value if type(value) is bool else _TEXT(value)


def _xml_name(value: Any) -> str:
    if type(value) is not str or not _XML_NAME.fullmatch(value):
        raise InvalidError("has a name that XML does not allow")
    return value


def _line_numbers(value: Any) -> list[int]:
    """Return line numbers. In arcs, negative numbers are entries and exits of functions."""
    try:
        found: list[int] = unpack("i", _PACKED(value)).tolist()
    except InvalidError:
        raise
    except ValueError:
        raise InvalidError("does not hold line numbers") from None
    if found and not -_MAX_LINE < min(found) <= max(found) < _MAX_LINE:
        raise InvalidError("has a line number that no file has")
    return found


def _durations(value: Any) -> array[float]:
    try:
        found = unpack("d", _PACKED(value))
    except InvalidError:
        raise
    except ValueError:
        raise InvalidError("does not hold durations") from None
    if not found or not all(map(math.isfinite, found)):
        raise InvalidError("does not hold durations")
    return found


def _cache_key(value: Any) -> str:
    """Accept a key of ``config.cache`` that is a path below the cache's directory, and is not a key
    of pytest itself.
    """
    key: str = schema.string(1000, escape=str)(value)
    parts = key.split("/")
    is_relative = not any(part in {"", ".", ".."} for part in parts)
    if not is_relative or key != schema.safe_text(key) or "\n" in key or "\\" in key:
        raise InvalidError("is not a relative path below the cache's directory")
    if len(parts) > 20 or max(map(len, parts)) > 100:
        raise InvalidError("is too long")
    if parts[0] == "cache":  # cache/lastfailed and the like, which are about all tests
        raise InvalidError("is a key of pytest itself")
    return key


def _warning(value: Any) -> Warning:
    """Return the warning; an exception that is not a warning becomes a :class:`UserWarning`."""
    made = _exception(value)
    try:
        text = str(made)  # __str__ may need attributes that could not be sent
    except Exception:  # noqa: BLE001 - a class of the suite's
        raise InvalidError("cannot be converted to text") from None
    made.__cause__ = None
    return made if isinstance(made, Warning) else UserWarning(text)


def _exception(value: Any) -> BaseException:
    """Return the exception that a value of :func:`values.encode_exception` describes."""
    checked = _EXCEPTION(value)
    try:
        made = values.decode_exception(checked)
    except Exception as error:  # noqa: BLE001 - a forged value may fail in any way
        raise InvalidError(f"is not an exception ({type(error).__name__})") from None
    if isinstance(made, _PYTEST_EXCEPTIONS) and not _is_complete(made):
        raise InvalidError("lacks attributes that pytest's own exceptions have")
    return made


_PYTEST_EXCEPTIONS = (
    pytest.fail.Exception,
    pytest.skip.Exception,
    pytest.xfail.Exception,
    pytest.exit.Exception,
)


def _is_complete(error: BaseException) -> bool:
    attributes = vars(error)
    return isinstance(attributes.get("msg", 0), str | None) and (
        isinstance(error, pytest.exit.Exception) or type(attributes.get("pytrace")) is bool
    )


_EXCEPTION = schema.record(
    {
        "class": schema.tuple_of(_NAME, _NAME),
        "args": schema.list_of(schema.any_json, 1000),
        "fields": schema.dict_of(_NAME, schema.any_json, 10),
        "state": schema.dict_of(_NAME, schema.any_json, 1000),
        "notes": schema.list_of(_TEXT, 1000),
        "traceback": _TEXT,
    }
)
_SYMPTOM = schema.tuple_of(
    schema.one_of(
        "dns",
        "refused",
        "browser",
        "pids",
        "process",
        "unreachable",
        "full",
        "moved",
        "foreign",
        "missing",
        "unread",
        "waited",
    ),
    schema.string(_PATH_LENGTH),
)


def _benchmark_option(value: Any) -> Any:
    return value if type(value) in {bool, str, type(None)} else schema.number(value)


_BENCHMARK_FACTS = schema.record(
    {
        "name": _LONG_NAME,
        "fullname": _LONG_NAME,
        "group": schema.optional(_NAME),
        "param": schema.optional(_LONG_NAME),
        "extra_info": schema.dict_of(_NAME, schema.any_json, 1000),
    }
)

# -- the schema of each kind

SCHEMAS: Mapping[str, Check] = {
    "report": schema.record(
        {
            "report": report_schema.report,
            "error": schema.optional(_exception),
            "symptoms": schema.list_of(_SYMPTOM, 100),
        }
    ),
    "passed": schema.tuple_of(
        schema.one_of("setup", "call", "teardown"), schema.number, schema.number, schema.number
    ),
    "logged": report_schema.report,
    "warning": schema.record(
        {
            "message": _warning,
            "filename": schema.string(_PATH_LENGTH),
            "lineno": schema.integer(0, 1 << 31),
            "when": schema.one_of("config", "collect", "runtest"),
            "nodeid": schema.string(1 << 16, escape=str),
            "location": schema.optional(
                schema.tuple_of(schema.string(_PATH_LENGTH), schema.integer(0, 1 << 31), _NAME)
            ),
        }
    ),
    "debugger": schema.boolean,
    "timeout": schema.number,
    "cache": schema.tuple_of(_cache_key, schema.any_json),
    "subtests": schema.integer(1, 1_000_000),
    "session_stop": schema.tuple_of(_stop_reason, _stop_reason),
    "junit": schema.tuple_of(
        schema.list_of(schema.tuple_of(_NAME, schema.any_json), 10_000),
        schema.dict_of(_xml_name, schema.any_json, 100),
    ),
    "benchmark": schema.record(
        {
            "facts": _BENCHMARK_FACTS,
            "options": schema.dict_of(_NAME, _benchmark_option, 20),
            "iterations": schema.integer(1, 1 << 40),
            "durations": _durations,
            "has_error": schema.boolean,
        }
    ),
    "carry": schema.tuple_of(_NAME, schema.any_json),
    "connections": schema.list_of(
        schema.tuple_of(
            schema.string(255),
            schema.optional(schema.integer(1, 0xFFFF)),
            schema.one_of("tcp", "udp", "dns"),
            schema.string(_PATH_LENGTH),
            schema.integer(1, 1 << 31),
        ),
        MAX_CALLS,
    ),
    "coverage": schema.record(
        {
            "file": schema.string(_PATH_LENGTH, escape=str),
            "context": _LONG_NAME,
            "tracer": _NAME,
            "kind": schema.one_of("lines", "arcs"),
            "numbers": _line_numbers,
        }
    ),
    "imported": schema.tuple_of(
        schema.list_of(_NAME, MAX_IMPORTED),
        schema.dict_of(_NAME, schema.integer(1, 1_000_000), 1000),
    ),
    "late_fixture": schema.tuple_of(_NAME, schema.one_of("class", "module", "package", "session")),
    "exit": schema.tuple_of(_TEXT, schema.optional(schema.integer(0, 255))),
    "internal": _TEXT,
    "done": schema.tuple_of(schema.boolean, schema.boolean),
}
