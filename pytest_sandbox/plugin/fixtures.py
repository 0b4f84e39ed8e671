"""The fixtures ``container`` and ``container_factory``: containers that a test in pytest's own
process controls.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox import supported
from pytest_sandbox.plugin import service_fixtures, unsupported
from pytest_sandbox.plugin.selection import settings_of
from pytest_sandbox.plugin.stash import IN_TEST_PROCESS, INSIDE

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from typing import Unpack

    from pytest_sandbox.container.container import Container, ContainerFactory
    from pytest_sandbox.settings.kwargs import SettingsKwargs
    from pytest_sandbox.settings.settings import Settings

__all__ = ["container", "container_factory", "pytest_runtest_makereport"]

_HELD = pytest.StashKey["Container"]()


@pytest.fixture
def container(request: pytest.FixtureRequest) -> Iterator[Container]:
    """A running container with the settings of the test's mark, discarded after the test."""
    item = request.node
    with unsupported.as_test_result(item.config):
        supported.require()
    from pytest_sandbox.container.container import Container
    from pytest_sandbox.plugin import artifacts

    if IN_TEST_PROCESS in item.stash:
        pytest.fail(
            "getfixturevalue('container') was called in a test that already runs inside a "
            "container. To control a container from outside, name it as an argument of the test.",
            pytrace=False,
        )
    made = Container(settings_of(item))
    made.handle.label = item.nodeid
    with unsupported.as_test_result(item.config):
        made.start()
    with made:
        item.stash[_HELD] = made
        item.ihook.pytest_sandbox_started(item=item, container=made)
        yield made
        del item.stash[_HELD]
        if made.status != "stopped":
            artifacts.copy_artifacts(item, made)
        if made.status != "stopped":
            item.ihook.pytest_sandbox_discard(item=item, container=made)


@pytest.fixture(scope="session")
def container_factory(request: pytest.FixtureRequest) -> Iterator[ContainerFactory]:
    """Create containers by ``container_factory(memory="256m")``, each a context manager; those
    still open are closed at the end of the session.
    """
    with ExitStack() as opened:

        def make(
            settings: Settings | None = None, /, **keywords: Unpack[SettingsKwargs]
        ) -> Container:
            with unsupported.as_test_result(request.config):
                supported.require()
            from pytest_sandbox.container.container import Container

            made = Container(settings, **keywords)
            opened.callback(made.close)
            return made

        yield make


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to the report of the call phase what the fixture's container used and changed.

    A setting that this host does not support may skip the test, also if it was given to
    ``container_factory``.
    """
    unsupported.skip(item.config, call)
    report = yield
    if report.failed and not item.stash.get(INSIDE, False):
        report.sections.extend(service_fixtures.sections(item))
    held = item.stash.get(_HELD, None)
    if held is not None and report.when == "call" and held.status != "stopped":
        _add_details(item, held, report)
    return report


def _add_details(item: pytest.Item, held: Container, report: pytest.TestReport) -> None:
    from pytest_sandbox.plugin import keep, network_report, report_sections, user_properties

    stats = held.handle.figures()
    kept = keep.keep_layer(item, held, failed=report.failed)
    user_properties.set_properties(item, held, stats, oom_killed=False, kept=kept)
    report.user_properties = list(item.user_properties)
    if report.failed:
        report.sections.extend(report_sections.sections(held, stats, kept))
    blocked = network_report.take_blocked(held)
    network_report.add_section(item, held, blocked, None, [report])
