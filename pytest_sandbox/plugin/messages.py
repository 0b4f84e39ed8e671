"""The schema of each message from a test's process, and the one place that checks them.

The process ran foreign code, so each message may be forged. What passes here has the types, sizes
and nesting that its users in the parent rely on, is about the running test and no other, and comes
in the order of a test's phases. Anything else is an
:class:`~pytest_sandbox.plugin.schema.InvalidError`, which fails the running test.

============  ======================================================================================
kind          data
============  ======================================================================================
report        a phase's report as pytest's hooks serialise it, the phase's exception as data, and
              what it shows of isolation (:mod:`pytest_sandbox.plugin.hints`)
logged        a report that another plugin logged meanwhile (a subtest)
warning       a warning as data
debugger      true while a debugger waits for a person (this wakes the parent)
cache         key and value that the test gave to ``config.cache``
subtests      how many subtests have failed
wishes        ``session.shouldstop`` and ``session.shouldfail``
junit         properties of the suite and attributes of the test's element
benchmark     what pytest-benchmark measured
coverage      lines or arcs of one file in one context (:mod:`pytest_sandbox.plugin.coverage_data`)
late_fixture  name and scope of a fixture of a higher scope that was made inside
exit          the test ends the session (``pytest.exit``): reason and return code
internal      the traceback of a fault outside of the test's phases
done          nothing is missing; true where the layer has more files than before (this wakes
              the parent)
============  ======================================================================================
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.container import values
from pytest_sandbox.plugin import benchmarks, coverage_data, report_schema
from pytest_sandbox.plugin.display import escaped
from pytest_sandbox.plugin.schema import (
    InvalidError,
    anything,
    boolean,
    each,
    integer,
    items,
    mapping,
    number,
    one_of,
    optional,
    record,
    text,
)

if TYPE_CHECKING:
    from array import array

    from pytest_sandbox.plugin.schema import Check

__all__ = ["LONGEST", "MOST", "Checker", "cost"]

#: Bytes of one message.
LONGEST = 4 << 20
#: Bytes of memory that one test's messages may take in the parent, as :func:`cost` estimates it.
MOST = 24 << 20
#: How many messages one test may send.
_MOST_MESSAGES = 100_000
#: A message of more bytes than this is looked at without its strings before it is read as JSON.
_SMALL = 1 << 16
_MOST_SKELETON = 1 << 20
_MOST_CONTAINERS = 20_000
_MOST_STRINGS = 50_000
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"')
#: What an empty list or object takes, in bytes.
_CONTAINER = 100
_LONGEST_INTEGER = 1000
_NAME = 1000
_TEXT = LONGEST
_PHASES = ("setup", "call", "teardown")
#: Attributes of XML elements; ElementTree writes any name as it is.
_XML_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,99}")
#: Settings of pytest-benchmark that travel.
_BENCHMARK_OPTION = optional(lambda value: value if type(value) in {bool, str} else number(value))


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_INTEGER:  # reading takes quadratic time
        raise InvalidError(f"has an integer of more than {_LONGEST_INTEGER} digits")
    return int(digits)


_DECODER = json.JSONDecoder(parse_int=_integer)


def _wish(value: Any) -> bool | str:
    return value if type(value) is bool else _REASON(value)


_REASON = text(_TEXT)


def _xml_name(value: Any) -> str:
    if type(value) is not str or not _XML_NAME.fullmatch(value):
        raise InvalidError("has a name that XML does not allow")
    return value


def coverage_numbers(value: Any) -> list[int]:
    """Return line numbers; negative ones, and zero, are those of entries and exits in arcs."""
    try:
        found = coverage_data.unpacked(text(LONGEST)(value))
    except ValueError as error:
        if isinstance(error, InvalidError):
            raise
        raise InvalidError("holds no line numbers") from None
    if found and not -_MOST_LINES < min(found) <= max(found) < _MOST_LINES:
        raise InvalidError("has a line number that no file has")
    return found


_MOST_LINES = 10_000_000


def _durations(value: Any) -> array[float]:
    try:
        return benchmarks.times(text(LONGEST)(value))
    except ValueError as error:
        if isinstance(error, InvalidError):
            raise
        raise InvalidError("holds no durations") from None


def _cache_key(value: Any) -> str:
    """Accept a key of ``config.cache`` that stays below the cache's directory, and is not pytest's
    own.
    """
    key: str = text(_NAME, show=str)(value)
    parts = key.split("/")
    if (
        key != escaped(key)
        or "\n" in key
        or "\\" in key
        or any(p in {"", ".", ".."} for p in parts)
    ):
        raise InvalidError("is no relative path below the cache's directory")
    if len(parts) > 20 or max(map(len, parts)) > 100:
        raise InvalidError("is too long")
    if parts[0] == "cache":  # what failed, what was there: about all tests
        raise InvalidError("is one of pytest's own")
    return key


def _warning(value: Any) -> Warning:
    """Return the warning; one of a class that is no warning becomes a :class:`UserWarning`."""
    made = exception(value)
    try:
        said = str(made)  # some classes fail without attributes that were no data
    except Exception:  # noqa: BLE001 - a test's class
        raise InvalidError("has no text") from None
    made.__cause__ = None
    return made if isinstance(made, Warning) else UserWarning(said)


def exception(value: Any) -> BaseException:
    """Return the exception that a value of :func:`values.encode_exception` stands for."""
    checked = _EXCEPTION(value)
    try:
        made = values.decode_exception(checked)
    except Exception as error:  # noqa: BLE001 - a forged one may have any fault
        raise InvalidError(f"is no exception ({type(error).__name__})") from None
    if isinstance(made, _OUTCOMES) and not _is_outcome(made):
        raise InvalidError("lacks what pytest's own exceptions have")
    return made


_OUTCOMES = (
    pytest.fail.Exception,
    pytest.skip.Exception,
    pytest.xfail.Exception,
    pytest.exit.Exception,
)


def _is_outcome(error: BaseException) -> bool:
    found = vars(error)
    return isinstance(found.get("msg", 0), str | None) and (
        isinstance(error, pytest.exit.Exception) or type(found.get("pytrace")) is bool
    )


_EXCEPTION = record(
    {
        "class": items(text(_NAME), text(_NAME)),
        "args": each(anything, 1000),
        "fields": mapping(text(_NAME), anything, 10),
        "state": mapping(text(_NAME), anything, 1000),
        "notes": each(text(_TEXT), 1000),
        "traceback": text(_TEXT),
    }
)
_SYMPTOM = items(
    one_of(
        "dns", "refused", "pids", "unreachable", "full", "moved", "foreign", "missing", "unread"
    ),
    text(4096),
)
_LOCATION = optional(items(text(4096), integer(0, 1 << 31), text(_NAME)))
_SCHEMAS: dict[str, Check] = {
    "report": record(
        {
            "report": report_schema.report,
            "error": optional(exception),
            "symptoms": each(_SYMPTOM, 100),
        }
    ),
    "logged": report_schema.report,
    "warning": record(
        {
            "message": _warning,
            "filename": text(4096),
            "lineno": integer(0, 1 << 31),
            "when": one_of("config", "collect", "runtest"),
            "nodeid": text(1 << 16, show=str),
            "location": _LOCATION,
        }
    ),
    "debugger": boolean,
    "cache": items(_cache_key, anything),
    "subtests": integer(1, 1_000_000),
    "wishes": items(_wish, _wish),
    "junit": items(
        each(items(text(_NAME), anything), 10_000),
        mapping(_xml_name, anything, 100),
    ),
    "benchmark": record(
        {
            "facts": record(
                {
                    "name": text(1 << 16),
                    "fullname": text(1 << 16),
                    "group": optional(text(_NAME)),
                    "param": optional(text(1 << 16)),
                    "extra_info": mapping(text(_NAME), anything, 1000),
                }
            ),
            "options": mapping(text(_NAME), _BENCHMARK_OPTION, 20),
            "iterations": integer(1, 1 << 40),
            "times": _durations,
            "has_error": boolean,
        }
    ),
    "coverage": record(
        {
            "file": text(4096, show=str),
            "context": text(1 << 16),
            "tracer": text(_NAME),
            "kind": one_of("lines", "arcs"),
            "numbers": coverage_numbers,
        }
    ),
    "late_fixture": items(text(_NAME), one_of("class", "module", "package", "session")),
    "exit": items(text(_TEXT), optional(integer(0, 255))),
    "internal": text(_TEXT),
    "done": boolean,
}


class Checker:
    """Checks the messages of one test's process, in their order.

    ``nodeid`` and ``location`` are the test's own; ``pairs`` says that properties must be pairs,
    which the writer of junit XML relies on.
    """

    def __init__(self, item: pytest.Item) -> None:
        self._nodeid = item.nodeid
        self._location = tuple(item.location)
        self._pairs = bool(getattr(item.config.option, "xmlpath", None))
        self._setup_only = bool(item.config.getoption("setuponly", default=False))
        self._next = list(_PHASES)
        self._has_exit = False
        self._is_done = False
        self._count = 0
        self._cost = 0

    def read(self, line: bytes) -> tuple[str, Any]:
        """Return kind and data of a message. Raises :class:`InvalidError`, which names both."""
        message = self._decoded(line)
        if type(message) is not list or len(message) != 2 or type(message[0]) is not str:
            raise InvalidError("a message is no pair of kind and data")
        kind, data = message
        if kind not in _SCHEMAS:
            raise InvalidError(f"there is no message {escaped(kind[:40])!r}")
        if self._is_done:
            raise InvalidError(f"message {kind!r} came after the last one")
        try:
            checked = _SCHEMAS[kind](data)
            follow = getattr(self, f"_follow_{kind}", None)
            return kind, checked if follow is None else follow(checked)
        except (InvalidError, RecursionError) as error:
            raise InvalidError(f"message {kind!r}: {error}") from None

    def _decoded(self, line: bytes) -> Any:
        self._count += 1
        self._cost += cost(line)
        if self._cost > MOST or self._count > _MOST_MESSAGES:
            raise InvalidError(f"the messages take more than {MOST >> 20} MiB of memory")
        try:
            return _DECODER.decode(str(line, "utf-8", "surrogatepass"))
        except InvalidError:
            raise
        except (ValueError, RecursionError) as error:
            raise InvalidError(f"a message is no JSON ({type(error).__name__})") from None

    # -- what depends on the test, and on the messages before

    def _follow_report(self, data: dict[str, Any]) -> dict[str, Any]:
        report = data["report"]
        self._own(report)
        if "_report_type" in report:
            raise InvalidError("is about a part of the test")
        if not self._next or report["when"] != self._next[0]:
            raise InvalidError(f"is of the phase {report['when']!r}, which is not its turn")
        self._next.pop(0)
        if report["when"] == "setup" and (report["outcome"] != "passed" or self._setup_only):
            self._next.remove("call")
        return data

    def _follow_logged(self, report: dict[str, Any]) -> dict[str, Any]:
        self._own(report)
        if report["when"] != "call" and report["when"] not in self._next[:1]:
            raise InvalidError(f"is of the phase {report['when']!r}, which is not its turn")
        return report

    def _own(self, report: dict[str, Any]) -> None:
        if report["nodeid"] != self._nodeid:
            raise InvalidError(f"is about another test, {escaped(report['nodeid'][:200])!r}")
        if report["location"] != self._location:
            raise InvalidError("has another test's location")
        if self._pairs and any(len(one) != 2 for one in report["user_properties"]):
            raise InvalidError("has a user property that is no pair, which junit XML cannot hold")

    def _follow_warning(self, data: dict[str, Any]) -> dict[str, Any]:
        if data["nodeid"] not in {self._nodeid, ""}:
            raise InvalidError("is about another test")
        return data

    @staticmethod
    def _follow_coverage(data: dict[str, Any]) -> dict[str, Any]:
        numbers, is_arcs = data["numbers"], data["kind"] == "arcs"
        if is_arcs and len(numbers) % 2:
            raise InvalidError("has half an arc")
        if not is_arcs and numbers and min(numbers) < 1:
            raise InvalidError("has a line number that no file has")
        return data

    def _follow_exit(self, data: tuple[str, int | None]) -> tuple[str, int | None]:
        self._has_exit = True
        return data

    def _follow_done(self, has_written: bool) -> bool:
        if self._next and not self._has_exit:
            raise InvalidError(f"came without a report of the phase {self._next[0]!r}")
        self._is_done = True
        return has_written


def cost(line: bytes) -> int:
    """Return about how many bytes of memory a message takes.

    Raises :class:`InvalidError` for one that is too large.
    """
    if len(line) > LONGEST:
        raise InvalidError(f"a message is larger than {LONGEST >> 20} MiB")
    # With one character beyond the Basic Multilingual Plane, each takes 4 bytes (PEP 393).
    size = len(line) if line.isascii() and b"\\u" not in line else 4 * len(line)
    if len(line) <= _SMALL:
        return size + _CONTAINER * (line.count(b"[") + line.count(b"{"))
    skeleton, strings = _STRING.subn(b"", line)
    containers = skeleton.count(b"[") + skeleton.count(b"{")
    if len(skeleton) > _MOST_SKELETON or containers > _MOST_CONTAINERS or strings > _MOST_STRINGS:
        raise InvalidError("a message has too many values")
    return size + 8 * len(skeleton) + _CONTAINER * (containers + strings)
