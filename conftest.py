"""Plugins for all tests of the project, and the option ``--host-has`` of its CI lanes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

pytest_plugins = ["pytester"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("project", "the project's own lanes").addoption(
        "--host-has",
        metavar="CAPABILITIES",
        help="capabilities of this lane's host, comma-separated: tests that need others are "
        "deselected, and a skip is a failure",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if (
        item.config.getoption("--host-has") is not None
        and report.skipped
        and not hasattr(report, "wasxfail")
    ):
        report.outcome = "failed"
        report.longrepr = f"skipped, but --host-has allows no skips: {report.longrepr}"
    return report
