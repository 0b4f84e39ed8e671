"""The changes that a container has made, as ``docker diff`` lists them.

They are found by comparing the upper directories of its overlays with the lower ones.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pytest_sandbox.container.builder import as_builder
from pytest_sandbox.container.layer import opened_layer
from pytest_sandbox.linux import overlay_diff
from pytest_sandbox.linux.directories import OpenDirectory
from pytest_sandbox.outcome import Change

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_sandbox.container.handle import Handle
    from pytest_sandbox.container.layer import Overlay

__all__ = ["Changes", "changes_of"]

Found = tuple[str, str]


class Changes(list[Change]):
    """Changes, sorted by path.

    ``counted`` is the number of changes that were found, and ``complete`` tells whether these are
    all. Their number and the time for the search are limited: a test may write millions of files.
    """

    def __init__(
        self, changes: Iterable[Change] = (), *, counted: int = 0, complete: bool = True
    ) -> None:
        super().__init__(changes)
        self.counted = counted
        self.complete = complete


def changes_of(
    handle: Handle,
    *,
    most: int = 1_000_000,
    seconds: float | None = None,
    as_user: bool = False,
    selection: overlay_diff.Selection | None = None,
    since: int = 0,
) -> Changes:
    """Return the changes that a container has made: at most ``most``, found within about
    ``seconds`` (None: no limit).

    ``as_user`` leaves out directories that the user of this process may not read, which saves a
    fork if the container was not created by root. ``selection``, as seen from the root directory,
    leaves out all other paths. ``since``, in nanoseconds since the epoch, leaves out what has last
    changed before.
    """
    budget = overlay_diff.Budget(most, seconds=seconds, since=since)
    with opened_layer(handle) as (layer, overlays):
        builder = -1 if as_user else handle.user_namespaces()[1]
        found, counted, complete = as_builder(
            builder, lambda: _search(handle, layer, overlays, budget, selection)
        )
    ordered = sorted({(path, kind) for kind, path in found})
    return Changes((Change(*one) for one in ordered), counted=counted, complete=complete)


def _search(
    handle: Handle,
    layer: int,
    overlays: dict[str, Overlay],
    budget: overlay_diff.Budget,
    selection: overlay_diff.Selection | None,
) -> tuple[list[Found], int, bool]:
    """Return kind and path of each change in the overlays of a layer, the number of changes, and
    whether these are all.
    """
    found: list[Found] = []
    for name, (point, lower) in overlays.items():
        selected = _below(selection, point)
        if selection is not None and selected is None:
            continue
        own = sum(len(one.paths(point)) for one in handle.snapshots)
        try:
            with OpenDirectory(f"{name}/upper", layer) as fd:
                changes = overlay_diff.changes_since(fd, lower[:own], lower[own:], budget, selected)
                below = [(kind, point + path) for kind, path in changes]
        except PermissionError:  # as_user: a directory that this user may not read
            continue
        if below and point:
            found += [("modified", parent) for parent in _parents(point)]
        found += below
    spec = handle.spec
    targets = {target for _source, target, _read_only in spec.volumes}
    listed = _without_mount_points(found, targets | {target for _source, target in spec.devices})
    counted = len(listed) if budget.complete else max(budget.counted, len(listed))
    return listed, counted, budget.complete


def _below(selection: overlay_diff.Selection | None, point: str) -> overlay_diff.Selection | None:
    """Return what is selected below a mount point."""
    for name in filter(None, point.split("/")):
        selection = None if selection is None else selection.below(name)
    return selection


def _without_mount_points(found: list[Found], targets: set[str]) -> list[Found]:
    """Remove the targets of mounts, and their parent directories in which nothing else has
    changed.
    """
    if not targets:
        return found
    parents = {parent for target in targets for parent in _parents(os.path.dirname(target))}
    others = {path for _kind, path in found} - targets - parents
    changed = {one for one in parents if any(path.startswith(f"{one}/") for path in others)}
    return [one for one in found if one[1] in others or one[1] in changed]


def _parents(path: str) -> list[str]:
    found = []
    while path != "/":
        found.append(path)
        path = os.path.dirname(path)
    return found
