"""The user properties ``container.*`` of a test's reports: what its container used.

pytest writes them to junit XML, xdist carries them to its controller, and summary.py reads them
there. Only the parent sets them: report_schema.py removes any that a test process reports.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

    from pytest_sandbox.container.container import Container
    from pytest_sandbox.outcome import Stats

__all__ = ["PREFIX", "is_of_container", "set_properties"]

PREFIX = "container."


def set_properties(
    item: pytest.Item,
    container: Container,
    stats: Stats,
    *,
    oom_killed: bool,
    kept: str | None = None,
) -> None:
    """Set the item's ``container.*`` properties, replacing those of an earlier run of the item.

    ``kept`` is the ID of the layer that ``--sandbox-keep`` saved, if any.
    """
    own = [
        ("container.id", container.id),
        _shared("container.memory_peak", stats.memory_peak),
        ("container.cpu_seconds", stats.cpu_seconds),
        _shared("container.pids_peak", stats.pids_peak),
        _shared("container.oom_killed", oom_killed or bool(stats.oom_kills)),
    ]
    if kept is not None:
        own.append(("container.kept", kept))
    others = [one for one in item.user_properties if not is_of_container(one)]
    item.user_properties[:] = [*others, *own]


@lru_cache(maxsize=1024, typed=True)
def _shared(name: str, value: object) -> tuple[str, object]:
    """Return a property that many tests have in common: pytest keeps the reports of all tests."""
    return name, value


def is_of_container(user_property: Any) -> bool:
    """Tell whether a user property is named ``container.*``.

    A suite's own properties may have names of any type, and any length.
    """
    return (
        bool(user_property)
        and isinstance(user_property[0], str)
        and user_property[0].startswith(PREFIX)
    )
