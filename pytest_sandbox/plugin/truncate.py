"""A report made to fit into one message: what an honest test may have is more than the parent
takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_sandbox.plugin import messages
from pytest_sandbox.plugin.report_channel import dumps, safe_repr
from pytest_sandbox.plugin.schema import InvalidError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

__all__ = ["fitted", "properties", "shortened"]

#: Characters of a section of captured output: those that are tried in turn.
_LONGEST_SECTION = (1 << 20, 1 << 17, 1 << 13)
#: What a report may cost, so that those of three phases fit.
_MOST = messages.MOST // 4
#: A report of fewer characters than this fits, whatever they are.
_SMALL = 1 << 17


def shortened(text: str, longest: int = _LONGEST_SECTION[0]) -> str:
    """Return the text, without its middle where it has more than ``longest`` characters."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


def fitted(data: dict[str, Any], report: pytest.TestReport) -> dict[str, Any]:
    """Return the data of a report message: with shorter output, then with a shorter failure, where
    it is too large.
    """
    size = sum(len(text) for _title, text in report.sections)
    if report.passed and size < _SMALL:
        return data
    sections = data["report"]["sections"]
    for longest in _LONGEST_SECTION:
        data["report"]["sections"] = [(title, shortened(text, longest)) for title, text in sections]
        if _fits(data):
            return data
    if type(data["report"]["longrepr"]) is not tuple:  # the reason of a skip
        data["report"]["longrepr"] = shortened(report.longreprtext, _SMALL)
    data["error"] = None
    return data


def _fits(data: dict[str, Any]) -> bool:
    try:
        return messages.cost(dumps(data)) <= _MOST
    except InvalidError:
        return False


def properties(found: Iterable[Any]) -> list[Any]:
    """Return user properties with names that JSON can hold: a name that is no scalar becomes its
    repr.
    """
    return [_property(one) for one in found]


def _property(one: Any) -> list[Any]:
    if type(one) not in {tuple, list}:
        return [safe_repr(one)]
    return [_name(name) for name in one[:1]] + list(one[1:])


def _name(name: Any) -> Any:
    is_scalar = name is None or type(name) in {str, int, float, bool}
    return name if is_scalar else safe_repr(name)
