"""``@pytest.mark.needs("root", "memory")`` skips a test if the host lacks one of them."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from capabilities import has

if TYPE_CHECKING:
    from collections.abc import Iterator


def wanted(item: pytest.Item) -> set[str]:
    """Return the capabilities that a test needs."""
    return {capability for mark in item.iter_markers("needs") for capability in mark.args}


def keep_what_the_lane_promises(
    config: pytest.Config, items: list[pytest.Item], promised: set[str]
) -> None:
    """Deselect the tests that need more than ``--host-has`` promises.

    The others are not skipped by probing, so that a missing capability is a failure.
    """
    beyond = [item for item in items if not wanted(item) <= promised]
    config.hook.pytest_deselected(items=beyond)
    items[:] = [item for item in items if wanted(item) <= promised]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    promised = config.getoption("--host-has")
    if promised is not None:
        keep_what_the_lane_promises(config, items, set(promised.split(",")))
        return
    for item in items:
        lacking = sorted(capability for capability in wanted(item) if not has(capability))
        if lacking:
            item.add_marker(pytest.mark.skip(reason=f"this host lacks {', '.join(lacking)}"))


@pytest.fixture(scope="session", autouse=True)
def default_interrupts() -> Iterator[None]:
    """Give children the default disposition of SIGINT, SIGQUIT and SIGHUP.

    A shell starts background jobs with the first two ignored, and nohup(1) programs with the last,
    which children inherit through execve(2). A signal with a handler has its default disposition
    there.
    """
    numbers = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
    ignored = [one for one in numbers if signal.getsignal(one) is signal.SIG_IGN]
    for one in ignored:
        signal.signal(one, signal.default_int_handler)
    yield
    for one in ignored:
        signal.signal(one, signal.SIG_IGN)
