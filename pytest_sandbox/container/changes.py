"""What was written in a container: the layers of its overlays beside what they lie on, as ``docker diff`` tells it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pytest_sandbox.linux import overlay_changes

if TYPE_CHECKING:
    from pytest_sandbox.container import Container

__all__ = ["changed_in"]


def changed_in(container: Container, layer: int, places: dict[str, tuple[str, tuple[str, ...]]]) -> list[tuple[str, str]]:
    """Return kind and path of each change in what :meth:`Container.layer` returned."""
    found = []
    for name, (point, lower) in places.items():
        try:
            fd = os.open(f"{name}/upper", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=layer)
        except PermissionError:  # a folder that others may not enter, this user among them: it has changed nothing in there
            continue
        own = sum(len(one.paths(point)) for one in container.frozen)
        try:
            below = [(kind, point + path) for kind, path in overlay_changes.changes_since(fd, lower[:own], lower[own:])]
        finally:
            os.close(fd)
        if below and point:
            found += [("modified", parent) for parent in _parents(point)]
        found += below
    return _without_mount_points(found, {target for _source, target, _ro in container.plan.volumes})


def _without_mount_points(found: list[tuple[str, str]], targets: set[str]) -> list[tuple[str, str]]:
    """Leave out the volumes' targets, and the folders on the way to them in which nothing else has changed."""
    ways = {parent for target in targets for parent in _parents(os.path.dirname(target))}
    others = {path for _kind, path in found} - targets - ways
    changed = {parent for path in others for parent in _parents(os.path.dirname(path))}
    return [one for one in found if one[1] in others or one[1] in ways & changed]


def _parents(path: str) -> list[str]:
    found = []
    while path != "/":
        found.append(path)
        path = os.path.dirname(path)
    return found
