"""Checks of plain data: each is a function that returns the value, or raises :class:`InvalidError`.

The checks are closures, made once when this module's users are imported, because they run for each
message of each test.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pytest_sandbox.plugin.display import escaped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Check = Callable[[Any], Any]

__all__ = [
    "InvalidError",
    "anything",
    "boolean",
    "each",
    "integer",
    "items",
    "mapping",
    "number",
    "one_of",
    "optional",
    "record",
    "scalar",
    "text",
]

#: Nesting of what :func:`anything` accepts.
DEEPEST = 100
_NAMES: dict[type, str] = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}


class InvalidError(ValueError):
    """A value that its schema does not allow; ``path`` says where it is, ``problem`` what is
    wrong.
    """

    def __init__(self, problem: str, path: str = "") -> None:
        super().__init__(problem, path)
        self.problem = problem
        self.path = path

    def __str__(self) -> str:
        return f"{self.path.lstrip('.')} {self.problem}" if self.path else self.problem

    def within(self, step: str) -> InvalidError:
        """Return the same error, seen from the value that contains this one."""
        return InvalidError(self.problem, step + self.path)


def _expected(wanted: str, value: Any) -> InvalidError:
    return InvalidError(f"must be {wanted}, and is {_NAMES.get(type(value), 'of another type')}")


def text(longest: int, *, show: Callable[[str], str] = escaped) -> Check:
    """Accept a string of at most ``longest`` characters, and return it as ``show`` returns it."""

    def check(value: Any) -> str:
        if type(value) is not str:
            raise _expected("a string", value)
        if len(value) > longest:
            raise InvalidError(f"has {len(value)} characters, and may have {longest}")
        return show(value)

    return check


def boolean(value: Any) -> bool:
    """Accept true and false."""
    if value is not True and value is not False:
        raise _expected("a boolean", value)
    return value


def integer(least: int, most: int) -> Check:
    """Accept an integer between two bounds, both included."""

    def check(value: Any) -> int:
        if type(value) is not int:
            raise _expected("an integer", value)
        if not least <= value <= most:
            raise InvalidError(f"must be between {least} and {most}")
        return value

    return check


def number(value: Any) -> float:
    """Accept a finite number below 10^12 in magnitude."""
    if type(value) not in {int, float}:
        raise _expected("a number", value)
    if not math.isfinite(value) or abs(value) > 1e12:
        raise InvalidError("must be a finite number below 1e12")
    return float(value)


def one_of(*values: Any) -> Check:
    """Accept one of some strings."""

    def check(value: Any) -> Any:
        if type(value) is not str or value not in values:
            raise InvalidError(f"must be one of {', '.join(map(repr, values))}")
        return value

    return check


def optional(inner: Check) -> Check:
    """Accept null, and what ``inner`` accepts."""
    return lambda value: None if value is None else inner(value)


def each(inner: Check, most: int, *, least: int = 0) -> Check:
    """Accept an array of ``least`` to ``most`` values that ``inner`` accepts."""

    def check(value: Any) -> list[Any]:
        if type(value) is not list:
            raise _expected("an array", value)
        if not least <= len(value) <= most:
            raise InvalidError(f"has {len(value)} entries, and may have {least} to {most}")
        return [_checked(inner, one, f"[{index}]") for index, one in enumerate(value)]

    return check


def items(*inner: Check) -> Check:
    """Accept an array of exactly as many values as there are checks, one for each; return a
    tuple.
    """

    def check(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise _expected("an array", value)
        if len(value) != len(inner):
            raise InvalidError(f"has {len(value)} entries, and must have {len(inner)}")
        return tuple(_checked(one, value[index], f"[{index}]") for index, one in enumerate(inner))

    return check


def mapping(key: Check, inner: Check, most: int) -> Check:
    """Accept an object of at most ``most`` entries."""

    def check(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise _expected("an object", value)
        if len(value) > most:
            raise InvalidError(f"has {len(value)} entries, and may have {most}")
        return {key(name): _checked(inner, one, f".{name[:40]}") for name, one in value.items()}

    return check


def record(required: Mapping[str, Check], others: Mapping[str, Check] | None = None) -> Check:
    """Accept an object with the required names and perhaps the others, and with no further ones."""
    checks = {**required, **(others or {})}

    def check(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise _expected("an object", value)
        if missing := required.keys() - value.keys():
            raise InvalidError(f"lacks {min(missing)!r}")
        if unknown := value.keys() - checks.keys():
            raise InvalidError(f"has the unknown entry {escaped(min(unknown)[:40])!r}")
        return {name: _checked(checks[name], one, f".{name}") for name, one in value.items()}

    return check


def _checked(inner: Check, value: Any, step: str) -> Any:
    try:
        return inner(value)
    except InvalidError as error:
        raise error.within(step) from None


def anything(value: Any, depth: int = 0) -> Any:
    """Accept any plain data of limited nesting; lone surrogates, which no file can hold, are
    escaped.
    """
    if type(value) is str:
        return _without_surrogates(value)
    if type(value) is not list and type(value) is not dict:
        return value
    if depth >= DEEPEST:
        raise InvalidError(f"is nested more than {DEEPEST} times")
    if isinstance(value, list):
        return [anything(one, depth + 1) for one in value]
    return {_without_surrogates(name): anything(one, depth + 1) for name, one in value.items()}


def _without_surrogates(value: str) -> str:
    if value.isascii() or value.isprintable():
        return value
    return value.encode("utf-8", "backslashreplace").decode()


def scalar(value: Any) -> Any:
    """Accept null, a boolean, a number or a string, which is returned escaped."""
    if type(value) in {list, dict}:
        raise _expected("a scalar", value)
    return escaped(value) if type(value) is str else value
