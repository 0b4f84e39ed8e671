"""The fixtures: a container to hold, and a factory for every scope."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox import supported
from pytest_sandbox.plugin.selection import FORKED, HOLDS, settings_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from typing import Unpack

    from pytest_sandbox.container.container import Container, ContainerFactory
    from pytest_sandbox.settings import Settings
    from pytest_sandbox.settings.kwargs import SettingsKwargs

__all__ = ["container", "container_factory", "pytest_runtest_makereport"]

_HELD = pytest.StashKey["Container"]()


@pytest.fixture
def container(request: pytest.FixtureRequest) -> Iterator[Container]:
    """A running container with the settings of the test's mark; thrown away after the test."""
    from pytest_sandbox.plugin.unsupported import refusing

    item = request.node
    with refusing(item.config):
        supported.require()
    from pytest_sandbox.container.container import Container

    if FORKED in item.stash:
        pytest.fail(
            "The test is inside its container, so it cannot hold it: name it as an argument "
            "(`container`) instead.",
            pytrace=False,
        )
    made = Container(settings_of(item))
    made.handle.label = item.nodeid
    with refusing(item.config):
        made.start()
    with made:
        item.stash[_HELD] = made
        item.ihook.pytest_sandbox_started(item=item, container=made)
        yield made
        del item.stash[_HELD]
        if made.status != "stopped":
            item.ihook.pytest_sandbox_discard(item=item, container=made)


@pytest.fixture(scope="session")
def container_factory(request: pytest.FixtureRequest) -> Iterator[ContainerFactory]:
    """Make containers by ``container_factory(memory="256m")``, each a context manager; what is
    still open ends with the session.
    """
    from pytest_sandbox.plugin.unsupported import refusing

    with ExitStack() as opened:

        def make(
            settings: Settings | None = None, /, **keywords: Unpack[SettingsKwargs]
        ) -> Container:
            with refusing(request.config):
                supported.require()
            from pytest_sandbox.container.container import Container

            made = Container(settings, **keywords)
            opened.callback(made.close)
            return made

        yield make


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the figures of the container that a test holds into its report."""
    report = yield
    held = item.stash.get(_HELD, None) if HOLDS in item.stash else None
    if held is not None and report.when == "call" and held.status != "stopped":
        from pytest_sandbox.plugin import keep, report_sections

        stats = held.handle.figures()
        kept = keep.keep(item, held, failed=report.failed)
        report_sections.add_properties(item, held, stats, killed=False, kept=kept)
        report.user_properties = list(item.user_properties)
        if report.failed:
            report.sections.extend(report_sections.sections(held, stats, kept))
    return report
