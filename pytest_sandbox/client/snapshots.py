"""Committed layers of this process's containers, which the layer holder keeps in memory."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

from pytest_sandbox.linux import process
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.runtime.spec import LAYER_HOLDER

__all__ = ["Snapshot", "Snapshots"]


class Launcher(Protocol):
    """The launcher whose layer holder has a layer."""

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""


class Snapshot:
    """A committed layer: ``directory`` is a descriptor of it, -1 once its launcher has ended.

    ``points`` are the mount points of its overlays in the container, by their numbers ("": the
    root). The layer is freed when no snapshot and no container uses it.
    """

    __slots__ = ("__weakref__", "directory", "key", "launcher", "points")

    def __init__(
        self, launcher: Launcher, key: str, directory: int, points: dict[str, str]
    ) -> None:
        self.launcher = launcher
        self.key = key
        self.directory = directory
        self.points = points

    @property
    def above(self) -> tuple[tuple[str, str], ...]:
        """The directories in the form of ``Spec.above``."""
        return tuple(
            (point, f"{LAYER_HOLDER}{self.key}/{number}/upper")
            for number, point in self.points.items()
        )

    def paths(self, point: str) -> list[str]:
        """Return the directories of one overlay as this process reaches them."""
        root = process.path_of(self.directory)
        return [f"{root}/{number}/upper" for number, at in self.points.items() if at == point]


class Snapshots:
    """The snapshots of one launcher.

    :meth:`collect` closes the descriptors of those without references. A finalizer could not: an
    exception of a signal handler may end it before it has begun.
    """

    def __init__(self) -> None:
        #: Keys of layers that no snapshot uses any more, to be released.
        self.unused: list[str] = []
        self._open: list[tuple[weakref.ref[Snapshot], str, int]] = []

    def add(self, launcher: Launcher, key: str, directory: int, points: dict[str, str]) -> Snapshot:
        """Return a new snapshot, which owns the descriptor; the caller defers signals."""
        snapshot = Snapshot(launcher, key, directory, points)
        self._open.append((weakref.ref(snapshot), key, directory))
        return snapshot

    def collect(self) -> None:
        """Close the descriptors of snapshots without references, and add their keys to
        ``unused``.
        """
        if all(reference() is not None for reference, _key, _directory in self._open):
            return
        with Deferred():
            alive = []
            for entry in self._open:
                reference, key, directory = entry
                if reference() is not None:
                    alive.append(entry)
                else:
                    os.close(directory)
                    self.unused.append(key)
            self._open = alive

    def descriptors(self) -> list[int]:
        """Return the open descriptors of the snapshots."""
        return [directory for _reference, _key, directory in self._open]

    def forget(self) -> None:
        """Mark all descriptors as closed, as the caller closes them."""
        for reference, _key, _directory in self._open:
            if (snapshot := reference()) is not None:
                snapshot.directory = -1
        self._open = []
