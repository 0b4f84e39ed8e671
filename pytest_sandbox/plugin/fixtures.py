"""The fixtures: a container to hold, and a factory for every scope."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.plugin.rule import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_sandbox.container import Container

__all__ = ["container", "container_factory"]


@pytest.fixture
def container(request: pytest.FixtureRequest) -> Iterator[Container]:
    """A running container with the settings of the test's mark; thrown away after the test."""
    from pytest_sandbox.container import Container

    hook = request.node.ihook
    with Container(request.node.stash[SETTINGS]) as made:
        hook.pytest_sandbox_started(item=request.node, container=made)
        yield made
        hook.pytest_sandbox_discard(item=request.node, container=made)


@pytest.fixture(scope="session")
def container_factory() -> Iterator[Callable[..., Container]]:
    """Make containers by ``container_factory(memory="256m")``, each a context manager; what is still open ends with the session."""
    from pytest_sandbox.container import Container

    with ExitStack() as opened:

        def make(**settings: Any) -> Container:
            made = Container(**settings)
            opened.callback(made.close)
            return made

        yield make
