"""How the launcher comes to the power to build, and what it builds on: the host's root, or, without
root, what a user may lay over it.
"""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import suppress

from pytest_sandbox import paths
from pytest_sandbox.errors import UnsupportedError
from pytest_sandbox.linux import (
    host_root,
    namespaces,
    private_directory,
    process,
    root_check,
    sysctl,
    userns,
)
from pytest_sandbox.runtime.protocol import Channel

__all__ = ["adopt_root", "bound_inotify", "find", "gain_power", "owner", "unlimited"]

# Of no user: above the ranges of distributions and of systemd (its UIDS-GIDS document), below
# 2**31.
_FIRST_OWNER = 0x7F000000
_OWNERS = 1 << 16
_INOTIFY_ALLOWED = "fs.inotify.max_user_instances"
_INOTIFY_LIMIT = "user.max_inotify_instances"


def gain_power(client: int) -> None:
    """Return where this process may make namespaces; else start its program anew in a user
    namespace, or tell the client why not, and end.
    """
    if userns.has_capabilities():
        return
    try:
        userns.reexec_in_user_namespace()
    except OSError as error:
        Channel.of(client).send(
            {
                "op": "error",
                "step": "make a user namespace",
                "reason": str(error.strerror),
                "errno": error.errno,
            }
        )
        sys.exit(1)


def adopt_root() -> None:
    """Leave a chroot for a mount namespace with the same root: containers are built on the root
    that the caller sees.

    Raises :class:`OSError` where that is not allowed.
    """
    if root_check.is_chrooted():
        root_check.leave_chroot()


def owner() -> int | None:
    """Return the UID that is to own the payloads' user namespace; None for the launcher's own.

    What the payloads use of inotify(7) and of other resources that the kernel counts by UID is
    charged to the owner. So it is nobody's UID, and this session's only: host root's share stays
    its own, and other sessions' theirs.
    """
    if os.geteuid() or not userns.is_initial():
        return None
    return _FIRST_OWNER + secrets.randbelow(_OWNERS)


def bound_inotify() -> None:
    """Leave half of the user's inotify(7) instances to the user, where the launcher is in a user
    namespace of its own.
    """
    try:
        if namespaces.identity("user") == namespaces.identity("user", os.getppid()):
            return
    except PermissionError:  # a process of the namespace outside is not ours to look at
        pass
    allowed = sysctl.value(_INOTIFY_ALLOWED)
    with suppress(
        OSError
    ):  # the kernel has no inotify, or /proc/sys cannot be written to in an outer container
        sysctl.write(_INOTIFY_LIMIT, str(int(allowed or 0) // 2 or 1))


def find(directory: str) -> host_root.HostRoot:
    """Look at the host's mounts, and return what containers stand on from now on; ``directory`` is
    the session's own.
    """
    if userns.is_initial():
        return host_root.for_root()
    number = len(os.listdir(directory))  # containers that live stand on the older ones
    works = [
        process.working_directory(os.getppid()),
        sys.prefix,
        os.environ.get("TMPDIR", "/tmp"),
        paths.images(),
        os.path.expanduser("~"),
    ]
    return host_root.for_user(f"{directory}/skeleton-{number}", works, _layers())


def unlimited(root: host_root.HostRoot, disk: int) -> UnsupportedError:
    """Return the error for a size that a user asks for of a layer that is not in memory: what could
    hold it, a loop device, root alone may mount.
    """
    what = "Without root, only a layer in memory can be limited"
    if root.layers is None:
        return UnsupportedError(f'disk={disk} with storage="disk"', f"{what}: leave storage= out.")
    release = os.uname().release
    return UnsupportedError(
        f"disk={disk}",
        f"{what}, and that takes Linux 6.6 or newer (this is {release}): use such a kernel, run "
        "as root, or leave disk= out.",
    )


def _layers() -> str | None:
    """Return a directory for writable layers where tmpfs holds none; raises OSError where nothing
    does.
    """
    if host_root.tmpfs_takes_attributes():
        return None
    refused: list[str] = []
    for base in (
        os.path.join(paths.images(), "writable"),
        os.path.join("/var/tmp", f"pytest-sandbox-{os.geteuid()}"),
    ):
        try:
            if host_root.takes_attributes(private_directory.make_private(base)):
                return base
            refused.append(f"{base}: its file system has no user attributes")
        except OSError as error:
            refused.append(f"{base}: {error.strerror}")
    reasons = "; ".join(refused)
    raise OSError(
        95,
        f"no directory for writable layers, which tmpfs cannot hold before Linux 6.6 ({reasons}). "
        "Set PYTEST_SANDBOX_HOME to one",
    )
