"""Checks of untrusted JSON values.

A check is a function that returns the value, made safe to use, or raises :class:`InvalidError`.
report_schema.py and messages.py combine them into the schemas of the messages of a test process.
The checks are closures, made once at import, because they run for each message of each test.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from pytest_sandbox.printable import TEXT, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Check = Callable[[Any], Any]

__all__ = [
    "MAX_DEPTH",
    "InvalidError",
    "any_json",
    "boolean",
    "dict_of",
    "integer",
    "list_of",
    "number",
    "one_of",
    "optional",
    "record",
    "safe_text",
    "scalar",
    "string",
    "tuple_of",
]

#: The nesting that :func:`any_json` accepts; json.dumps() recurses, so it must stay well below
#: sys.getrecursionlimit().
MAX_DEPTH = 100
_TYPE_NAMES: dict[type, str] = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}
#: Escape the control characters of text, except tabs and line feeds.
safe_text = partial(printable, unsafe=TEXT)


class InvalidError(ValueError):
    """A value that its schema does not allow: ``path`` is its position, ``problem`` the reason."""

    def __init__(self, problem: str, path: str = "") -> None:
        super().__init__(problem, path)
        self.problem = problem
        self.path = path

    def __str__(self) -> str:
        return f"{self.path.lstrip('.')} {self.problem}" if self.path else self.problem

    def within(self, step: str) -> InvalidError:
        """Return the same error, with a path that starts at the enclosing value."""
        return InvalidError(self.problem, step + self.path)


def _expected(wanted: str, value: Any) -> InvalidError:
    found = _TYPE_NAMES.get(type(value), "a value of another type")
    return InvalidError(f"must be {wanted}, not {found}")


def string(max_length: int, *, escape: Callable[[str], str] = safe_text) -> Check:
    """Accept a string of at most ``max_length`` characters; return it with ``escape`` applied.

    ``escape=str`` leaves the string unchanged.
    """

    def check(value: Any) -> str:
        if type(value) is not str:
            raise _expected("a string", value)
        if len(value) > max_length:
            raise InvalidError(f"has {len(value)} characters; at most {max_length} are allowed")
        return value if value.isprintable() else escape(value)

    return check


def boolean(value: Any) -> bool:
    """Accept true and false."""
    if value is not True and value is not False:
        raise _expected("a boolean", value)
    return value


def integer(lowest: int, highest: int) -> Check:
    """Accept an integer from ``lowest`` to ``highest``, both included."""

    def check(value: Any) -> int:
        if type(value) is not int:
            raise _expected("an integer", value)
        if not lowest <= value <= highest:
            raise InvalidError(f"must be between {lowest} and {highest}")
        return value

    return check


def number(value: Any) -> float:
    """Accept a finite number of a magnitude up to 1e12, which no duration or time stamp exceeds."""
    if type(value) not in {int, float}:
        raise _expected("a number", value)
    if not math.isfinite(value) or abs(value) > 1e12:
        raise InvalidError("must be a finite number of a magnitude up to 1e12")
    return float(value)


def one_of(*values: str) -> Check:
    """Accept one of the given strings."""

    def check(value: Any) -> Any:
        if type(value) is not str or value not in values:
            raise InvalidError(f"must be one of {', '.join(map(repr, values))}")
        return value

    return check


def optional(inner: Check) -> Check:
    """Accept null, and what ``inner`` accepts."""
    return lambda value: None if value is None else inner(value)


def list_of(inner: Check, max_length: int, *, min_length: int = 0) -> Check:
    """Accept an array of values that ``inner`` accepts."""

    def check(value: Any) -> list[Any]:
        if type(value) is not list:
            raise _expected("an array", value)
        if not min_length <= len(value) <= max_length:
            raise InvalidError(
                f"has {len(value)} entries; {min_length} to {max_length} are allowed"
            )
        return [_checked(inner, one, f"[{index}]") for index, one in enumerate(value)]

    return check


def tuple_of(*inner: Check) -> Check:
    """Accept an array with one value for each check; return a tuple."""

    def check(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise _expected("an array", value)
        if len(value) != len(inner):
            raise InvalidError(f"has {len(value)} entries; {len(inner)} are required")
        return tuple(_checked(one, value[index], f"[{index}]") for index, one in enumerate(inner))

    return check


def dict_of(key: Check, inner: Check, max_length: int) -> Check:
    """Accept an object of at most ``max_length`` entries."""

    def check(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise _expected("an object", value)
        if len(value) > max_length:
            raise InvalidError(f"has {len(value)} entries; at most {max_length} are allowed")
        return {key(name): _checked(inner, one, f".{name[:40]}") for name, one in value.items()}

    return check


def record(required: Mapping[str, Check], others: Mapping[str, Check] | None = None) -> Check:
    """Accept an object with all required keys, any of the others, and no unknown ones."""
    checks = {**required, **(others or {})}

    def check(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise _expected("an object", value)
        if missing := required.keys() - value.keys():
            raise InvalidError(f"has no entry {min(missing)!r}")
        if unknown := value.keys() - checks.keys():
            raise InvalidError(f"has the unknown entry {safe_text(min(unknown)[:40])!r}")
        return {name: _checked(checks[name], one, f".{name}") for name, one in value.items()}

    return check


def _checked(inner: Check, value: Any, step: str) -> Any:
    try:
        return inner(value)
    except InvalidError as error:
        raise error.within(step) from None


def any_json(value: Any, depth: int = 0) -> Any:
    """Accept any JSON value nested at most :data:`MAX_DEPTH` levels deep; escape lone surrogates,
    which cannot be encoded in UTF-8.
    """
    if type(value) is str:
        return _without_surrogates(value)
    if type(value) is not list and type(value) is not dict:
        return value
    if depth >= MAX_DEPTH:
        raise InvalidError(f"is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, list):
        return [any_json(one, depth + 1) for one in value]
    return {_without_surrogates(name): any_json(one, depth + 1) for name, one in value.items()}


def _without_surrogates(value: str) -> str:
    if value.isascii() or value.isprintable():
        return value
    return value.encode("utf-8", "backslashreplace").decode()


def scalar(value: Any) -> Any:
    """Accept null, a boolean, a number or a string; escape the string."""
    if type(value) in {list, dict}:
        raise _expected("a scalar", value)
    return safe_text(value) if type(value) is str else value
