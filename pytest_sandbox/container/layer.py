"""The writable layer of a container: its directory, and the overlays in it.

The layer is a directory with one numbered directory for each overlay. Their numbers are those of
:mod:`pytest_sandbox.runtime.create`: 0 for the root, from 1 on for the host's other file systems,
from 1000 on for the host's directories over an image, and from 2000 on for an image's volumes on a
read-only root. The directory ``upper`` in each holds what was written.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from pytest_sandbox.errors import ContainerStopped
from pytest_sandbox.runtime.spec import FIRST_DIRECTORY, FIRST_SCRATCH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_sandbox.container.handle import Handle

__all__ = ["Overlay", "opened_layer"]


class Overlay(NamedTuple):
    """An overlay: its mount point ("" for the root), and its lower directories, topmost first."""

    point: str
    lower: tuple[str, ...]


@contextmanager
def opened_layer(handle: Handle) -> Iterator[tuple[int, dict[str, Overlay]]]:
    """Yield a descriptor of the writable layer, open within the block, and its overlays by number.

    Raises :class:`ContainerStopped` if the container has ended.
    """
    answer, fds = handle.request_layer()
    with fds:
        if not fds:
            raise ContainerStopped.ended(handle.id)
        layer = fds.first()
        numbers = sorted(int(name) for name in os.listdir(layer) if name.isdigit())
        points = answer["points"]
        yield layer, {str(number): _overlay(handle, number, points) for number in numbers}


def _overlay(handle: Handle, number: int, points: list[list[str]]) -> Overlay:
    """Return the overlay of a number; ``points`` are mount point and lower directory of those from
    1 on.
    """
    if number == 0:
        return Overlay("", (*_above(handle, ""), *handle.spec.lower))
    if number >= FIRST_SCRATCH:
        point, *lower_directories = handle.spec.scratch[number - FIRST_SCRATCH]
        return Overlay(point, tuple(lower_directories))
    if number >= FIRST_DIRECTORY:
        point = lower = handle.spec.directories[number - FIRST_DIRECTORY]
    else:
        point, lower = points[number - 1]
    return Overlay(point, (*_above(handle, point), lower))


def _above(handle: Handle, point: str) -> list[str]:
    """Return the directories of committed layers that an overlay lies on, as paths for this
    process.
    """
    snapshots = [*reversed(handle.snapshots), *getattr(handle.rootfs.image, "snapshots", ())]
    stored = [place for at, place in handle.rootfs.above if at == point and os.path.isabs(place)]
    return [*(path for one in snapshots for path in one.paths(point)), *stored]
