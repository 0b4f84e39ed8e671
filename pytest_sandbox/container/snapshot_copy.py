"""Copy directories into new snapshots of the launcher's layer holder."""

from __future__ import annotations

import os
import secrets
from functools import partial
from typing import TYPE_CHECKING

from pytest_sandbox.container.builder import as_builder
from pytest_sandbox.linux import process
from pytest_sandbox.linux.copying import Copied, copy_tree
from pytest_sandbox.linux.directories import OpenDirectory
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.runtime.spec import LAYER_HOLDER

if TYPE_CHECKING:
    from pytest_sandbox.client.session import LauncherClient
    from pytest_sandbox.client.snapshots import Snapshot

__all__ = ["copied_layers", "copy_directory", "copy_to_snapshot"]


def copied_layers(
    launcher: LauncherClient, above: tuple[tuple[str, str], ...]
) -> tuple[tuple[str, str], ...]:
    """Return directories above the host's root as a spec may name them: those of the image store
    are copied to the layer holder, once for each launcher.

    The store is on the host's root, and overlayfs refuses two layers of which one is within the
    other (ELOOP).
    """
    found = []
    for point, place in above:
        if place.startswith(LAYER_HOLDER):
            found.append((point, place))
            continue
        if place not in launcher.copied_layers:
            launcher.copied_layers[place] = copy_to_snapshot(launcher, {"0": point}, {"0": place})
        found += launcher.copied_layers[place].above
    return tuple(found)


def copy_to_snapshot(
    launcher: LauncherClient, points: dict[str, str], sources: dict[str, str]
) -> Snapshot:
    """Return a new snapshot with copies of directories.

    ``points`` are the mount points and ``sources`` the directories, both by the number of the
    overlay.
    """
    snapshot = _new_snapshot(launcher, points)
    directory = snapshot.directory
    for number, source in sources.items():
        os.mkdir(number, 0o700, dir_fd=directory)
        target = f"{process.path_of(directory)}/{number}/upper"
        as_builder(launcher.builder_fd, partial(copy_directory, source, target))
    return snapshot


def _new_snapshot(launcher: LauncherClient, points: dict[str, str]) -> Snapshot:
    key = secrets.token_hex(8)
    try:
        _answer, fds = launcher.request({"op": "new_layer", "key": key})
        with Deferred():
            return launcher.snapshots.add(launcher, key, fds.take(), points)
    except BaseException:
        launcher.snapshots.unused.append(key)
        raise


def copy_directory(source: str, target: str, *, owners: bool = True) -> Copied:
    """Copy a directory; with ``owners``, files keep their UID and GID."""
    with OpenDirectory(source) as fd:
        return copy_tree(fd, target, owners=owners)
