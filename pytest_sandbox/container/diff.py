"""What was written in a container.

The layers of its overlays beside what they lie on, as ``docker diff`` tells it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pytest_sandbox.container.fork import as_builder
from pytest_sandbox.linux import overlay_diff
from pytest_sandbox.linux.directories import OpenDirectory
from pytest_sandbox.outcome import Change

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_sandbox.container.container import Container

__all__ = ["Changes", "changes_of"]

Found = tuple[str, str]


class Changes(list[Change]):
    """Changes, sorted by path.

    ``counted`` is how many were found, and ``complete`` tells whether these are all that there are.

    A test may write millions of files, or names that no memory holds: what is listed has a bound,
    and so has the time for it.
    """

    def __init__(
        self, changes: Iterable[Change] = (), *, counted: int = 0, complete: bool = True
    ) -> None:
        super().__init__(changes)
        self.counted = counted
        self.complete = complete


def changes_of(
    container: Container,
    *,
    most: int = 1_000_000,
    seconds: float | None = None,
    as_user: bool = False,
) -> Changes:
    """Return what a container has changed.

    At most ``most`` changes, found in about ``seconds`` (None: any time).

    ``as_user`` leaves out what this process's user may not look into, which saves a fork where the
    container was not made by root.
    """
    budget = overlay_diff.Budget(most, seconds=seconds)
    with container.opened_layer() as (layer, places):
        builder = -1 if as_user else container.user_namespaces()[1]
        found, counted, complete = as_builder(
            builder, lambda: _found(container, layer, places, budget)
        )
    ordered = sorted({(path, kind) for kind, path in found})
    return Changes((Change(*one) for one in ordered), counted=counted, complete=complete)


def _found(
    container: Container,
    layer: int,
    places: dict[str, tuple[str, tuple[str, ...]]],
    budget: overlay_diff.Budget,
) -> tuple[list[Found], int, bool]:
    """Return kind and path of each change in what :meth:`Container.layer` returned, their number,
    and whether these are all.
    """
    found: list[Found] = []
    for name, (point, lower) in places.items():
        own = sum(len(one.paths(point)) for one in container.frozen)
        try:
            with OpenDirectory(f"{name}/upper", layer) as fd:
                changes = overlay_diff.changes_since(fd, lower[:own], lower[own:], budget)
                below = [(kind, point + path) for kind, path in changes]
        except PermissionError:  # a directory that others may not enter, this user among them: it has changed nothing in there
            continue
        if below and point:
            found += [("modified", parent) for parent in _parents(point)]
        found += below
    told = _without_mount_points(found, {target for _source, target, _ro in container.spec.volumes})
    return (
        told,
        max(budget.counted, len(told)) if not budget.complete else len(told),
        budget.complete,
    )


def _without_mount_points(found: list[Found], targets: set[str]) -> list[Found]:
    """Leave out the volumes' targets, and the directories on the way to them in which nothing else
    has changed.
    """
    if not targets:
        return found
    ways = {parent for target in targets for parent in _parents(os.path.dirname(target))}
    others = {path for _kind, path in found} - targets - ways
    changed = {way for way in ways if any(path.startswith(f"{way}/") for path in others)}
    return [one for one in found if one[1] in others or one[1] in changed]


def _parents(path: str) -> list[str]:
    found = []
    while path != "/":
        found.append(path)
        path = os.path.dirname(path)
    return found
