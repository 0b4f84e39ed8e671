"""Which device nodes of the host a container has.

A node can be opened only on a mount that is not ``nodev``. A container has no such mount, except a
bind mount of each of these nodes. So no other device can be opened, as root and as an unprivileged
user, on both cgroup versions.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from pytest_sandbox.container import gpus
from pytest_sandbox.errors import SettingsError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_sandbox.settings.settings import Settings

__all__ = ["has_nodes", "nodes"]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all

_DEV = "/dev"
_MAX_NODES = 256  # what /dev of a container has place for, by far


def nodes(settings: Settings) -> tuple[tuple[str, str], ...]:
    """Return the path of each device node of ``devices`` and ``gpus``, and its path inside.

    Raises :class:`SettingsError` for a path that is no device node, and :class:`UnsupportedError`
    for a node that this user may not open, and for GPUs that this host does not have.
    """
    found = dict[str, str]()
    for device in settings.devices:
        for source, target in _expand(device.source, device.target):
            found[target] = source
    if settings.gpus is not None:
        found |= {path: path for path in gpus.nodes(settings.gpus)}
    return tuple((source, target) for target, source in sorted(found.items()))


def _expand(source: str, target: str) -> Iterator[tuple[str, str]]:
    """Yield the nodes of a path: itself, or those in a directory, as in docker."""
    if not os.path.isdir(source):
        yield _checked(source), target
        return
    below = [
        os.path.join(directory, name)
        for directory, _directories, names in os.walk(source)
        for name in names
    ]
    found = sorted(path for path in below if _is_node(path))
    if not 0 < len(found) <= _MAX_NODES:
        accepted = f"a directory with 1 to {_MAX_NODES} device nodes; this one has {len(found)}"
        raise SettingsError("devices", source, accepted)
    for path in found:
        yield _checked(path), os.path.normpath(f"{target}/{os.path.relpath(path, source)}")


def _checked(path: str) -> str:
    """Return the path of a device node, without links."""
    if not _is_node(path):
        accepted = "a device node of the host, or a directory of them, before the colon"
        is_there = os.path.exists(path)
        reason = "volumes= passes other files" if is_there else "there is nothing at this path"
        raise SettingsError("devices", path, f"{accepted}; {reason}")
    if not (os.access(path, os.R_OK) or os.access(path, os.W_OK)):
        status = os.stat(path)
        mode = f"{stat.filemode(status.st_mode)}, UID {status.st_uid}, GID {status.st_gid}"
        raise UnsupportedError(
            f"devices={path!r}",
            f"This user may not open it ({mode}): run as root, or allow it, as with "
            f"`sudo setfacl -m u:{os.geteuid()}:rw {path}`.",
        )
    return os.path.realpath(path)


def _is_node(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def has_nodes(path: str) -> bool:
    """Return whether a path is a device node, or a directory of the host's /dev itself (not of a
    file system that is mounted below, such as /dev/shm).
    """
    if not os.path.isdir(path):
        return _is_node(path)
    return os.path.ismount(_DEV) and os.stat(path).st_dev == os.stat(_DEV).st_dev
