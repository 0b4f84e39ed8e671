"""The check of every message from a test process, before anything in the parent uses it.

report_channel.py passes each line to :meth:`MessageChecker.read`. A message that passes has the
types, sizes and nesting of its schema (messages.py), is about the running test, and is in the order
of a test's phases. Any other is an :class:`~pytest_sandbox.plugin.schema.InvalidError`, which fails
the running test.
"""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

from pytest_sandbox.plugin.messages import MAX_MESSAGE_BYTES, SCHEMAS
from pytest_sandbox.plugin.schema import InvalidError, safe_text

if TYPE_CHECKING:
    import pytest

__all__ = ["MAX_TOTAL_BYTES", "MessageChecker", "memory_cost"]

#: Bytes of memory that the messages of one test may take in the parent, as estimated by
#: :func:`memory_cost`.
MAX_TOTAL_BYTES = 24 << 20
_MAX_MESSAGES = 100_000
#: int() takes quadratic time.
_MAX_DIGITS = 1000
#: Up to this many bytes, the memory that a message takes is estimated from its brackets alone.
_SMALL = 1 << 16
# Limits of a larger message: bytes outside of strings, objects and arrays, strings.
_MAX_SKELETON = 1 << 20
_MAX_CONTAINERS = 20_000
_MAX_STRINGS = 50_000
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"')
#: Bytes of an empty list or dict: at least sys.getsizeof() of both.
_CONTAINER_BYTES = 100
_PHASES = ("setup", "call", "teardown")


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise InvalidError(f"has an integer of more than {_MAX_DIGITS} digits")
    return int(digits)


_DECODER = json.JSONDecoder(parse_int=_integer)


class MessageChecker:
    """The check of the messages of one test, in their order.

    ``ending`` is for what comes after the last test that a test process runs: at most a report of
    the teardown phase. With ``--junitxml``, user properties must be pairs, as its writer expects.
    """

    def __init__(self, item: pytest.Item, *, ending: bool = False) -> None:
        self._nodeid = item.nodeid
        self._location = tuple(item.location)
        self._keywords = dict.fromkeys(item.keywords, 1)
        self._requires_pairs = bool(getattr(item.config.option, "xmlpath", None))
        self._setup_only = bool(item.config.getoption("setuponly", default=False))
        self._next_phases = list(_PHASES[2:] if ending else _PHASES)
        self._may_lack_phases = ending
        self._has_exit = False
        self._is_done = False
        self._count = 0
        self._total_cost = 0

    def read(self, line: bytes) -> tuple[str, Any]:
        """Return kind and data of a message. Raise :class:`InvalidError` if it is invalid."""
        message = self._decoded(line)
        if type(message) is not list or len(message) != 2 or type(message[0]) is not str:
            raise InvalidError("a message is not a pair of kind and data")
        kind, data = message
        if kind not in SCHEMAS:
            raise InvalidError(f"unknown kind of message {safe_text(kind[:40])!r}")
        if self._is_done:
            raise InvalidError(f"message {kind!r} came after the last one")
        try:
            checked = SCHEMAS[kind](data)
            if kind == "passed":
                kind, checked = "report", self._report_of(*checked)
            check = getattr(self, f"_check_{kind}", None)
            if check is not None:
                check(checked)
        except (InvalidError, RecursionError) as error:
            raise InvalidError(f"message {kind!r}: {error}") from None
        return kind, checked

    def _decoded(self, line: bytes) -> Any:
        self._count += 1
        self._total_cost += memory_cost(line)
        if self._total_cost > MAX_TOTAL_BYTES or self._count > _MAX_MESSAGES:
            raise InvalidError(f"the messages take more than {MAX_TOTAL_BYTES >> 20} MiB of memory")
        try:
            return _DECODER.decode(str(line, "utf-8", "surrogatepass"))
        except InvalidError:
            raise
        except (ValueError, RecursionError) as error:
            raise InvalidError(f"a message is not JSON ({type(error).__name__})") from None

    def _report_of(self, when: str, start: float, stop: float, duration: float) -> dict[str, Any]:
        """Return the data of a phase that has passed, as a message "report" has it; only the report
        lacks the mark of a serialised one (results.py).
        """
        report: dict[str, Any] = {
            "nodeid": self._nodeid,
            "location": self._location,
            "keywords": dict(self._keywords),
            "outcome": "passed",
            "longrepr": None,
            "when": sys.intern(when),
            "user_properties": [],
            "sections": [],
            "duration": duration,
            "start": start,
            "stop": stop,
        }
        return {"report": report, "error": None, "symptoms": []}

    # -- what depends on the test and on earlier messages, by kind

    def _check_report(self, data: dict[str, Any]) -> None:
        report = data["report"]
        self._check_identity(report)
        if "_report_type" in report:
            raise InvalidError("is about a subtest")
        if not self._next_phases or report["when"] != self._next_phases[0]:
            raise _out_of_order(report)
        self._next_phases.pop(0)
        if report["when"] == "setup" and (report["outcome"] != "passed" or self._setup_only):
            self._next_phases.remove("call")

    def _check_logged(self, report: dict[str, Any]) -> None:
        self._check_identity(report)
        if report["when"] != "call" and report["when"] not in self._next_phases[:1]:
            raise _out_of_order(report)

    def _check_identity(self, report: dict[str, Any]) -> None:
        if report["nodeid"] != self._nodeid:
            raise InvalidError(f"is about another test, {safe_text(report['nodeid'][:200])!r}")
        if report["location"] != self._location:
            raise InvalidError("has the location of another test")
        if self._requires_pairs and any(len(one) != 2 for one in report["user_properties"]):
            raise InvalidError("has a user property that is not a pair, as junit XML requires")

    def _check_warning(self, data: dict[str, Any]) -> None:
        if data["nodeid"] not in {self._nodeid, ""}:
            raise InvalidError("is about another test")

    @staticmethod
    def _check_coverage(data: dict[str, Any]) -> None:
        numbers, is_arcs = data["numbers"], data["kind"] == "arcs"
        if is_arcs and len(numbers) % 2:
            raise InvalidError("has an arc without an end")
        if not is_arcs and numbers and min(numbers) < 1:
            raise InvalidError("has a line number that no file has")

    def _check_exit(self, _data: tuple[str, int | None]) -> None:
        self._has_exit = True

    def _check_done(self, _data: tuple[bool, bool]) -> None:
        if self._next_phases and not self._has_exit and not self._may_lack_phases:
            raise InvalidError(f"came without a report of the phase {self._next_phases[0]!r}")
        self._is_done = True


def _out_of_order(report: dict[str, Any]) -> InvalidError:
    return InvalidError(f"is about the phase {report['when']!r} and out of order")


def memory_cost(line: bytes) -> int:
    """Return an estimate of the bytes of memory that a message takes once it is decoded.

    Raises :class:`InvalidError` for a message that is too large.
    """
    if len(line) > MAX_MESSAGE_BYTES:
        raise InvalidError(f"a message is larger than {MAX_MESSAGE_BYTES >> 20} MiB")
    # One character beyond the Basic Multilingual Plane makes all of a string take 4 bytes (PEP 393)
    size = len(line) if line.isascii() and b"\\u" not in line else 4 * len(line)
    if len(line) <= _SMALL:
        return size + _CONTAINER_BYTES * (line.count(b"[") + line.count(b"{"))
    skeleton, strings = _STRING.subn(b"", line)
    containers = skeleton.count(b"[") + skeleton.count(b"{")
    if len(skeleton) > _MAX_SKELETON or containers > _MAX_CONTAINERS or strings > _MAX_STRINGS:
        raise InvalidError("a message has too many values")
    return size + 8 * len(skeleton) + _CONTAINER_BYTES * (containers + strings)
