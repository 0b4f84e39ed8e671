"""Reports shortened to the size that the parent accepts (message_checker.py).

The test process calls this: an ordinary test may print more than that.
"""

from __future__ import annotations

from typing import Any

import pytest

from pytest_sandbox.container import values
from pytest_sandbox.plugin.lenient_json import dumps
from pytest_sandbox.plugin.message_checker import MAX_TOTAL_BYTES, memory_cost
from pytest_sandbox.plugin.schema import InvalidError

__all__ = ["truncated", "truncated_report"]

#: Characters of a section of captured output; the next smaller number is tried when all do not fit.
_SECTION_LENGTHS = (1 << 20, 1 << 17, 1 << 13)
#: Bytes of one report: those of three phases fit, and there is room for other messages.
_MAX_REPORT_BYTES = MAX_TOTAL_BYTES // 4
#: Output of fewer characters fits, whatever they are.
_SMALL = 1 << 17
_sum = sum  # a test may have replaced it


def truncated(text: str, max_length: int = _SECTION_LENGTHS[0]) -> str:
    """Return the text; if it has more than ``max_length`` characters, without those in the
    middle.
    """
    if len(text) <= max_length:
        return text
    half = max_length // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


def truncated_report(data: dict[str, Any], report: pytest.TestReport) -> dict[str, Any]:
    """Return the data of a "report" message; truncate first its output, then its failure, until it
    is small enough.
    """
    size = _sum(len(text) for _title, text in report.sections)
    if report.passed and size < _SMALL:
        return data
    sections = data["report"]["sections"]
    for length in _SECTION_LENGTHS:
        data["report"]["sections"] = [(title, truncated(text, length)) for title, text in sections]
        if _fits(data):
            return data
    if type(data["report"]["longrepr"]) is not tuple:  # a tuple is the short reason of a skip
        data["report"]["longrepr"] = truncated(report.longreprtext, _SMALL)
    data["error"] = None
    if report.failed:  # the parent raises it again
        text = "the exception of the test is too large to be sent"
        data["error"] = values.encode_exception(pytest.fail.Exception(text, pytrace=False))
    return data


def _fits(data: dict[str, Any]) -> bool:
    try:
        return memory_cost(dumps(data)) <= _MAX_REPORT_BYTES
    except InvalidError:
        return False
