"""How the launcher gets the capabilities to create containers, and the root that they are based on.

That is the host's root, or, for an unprivileged user, directories of it that a user may use as
lower layers.
"""

from __future__ import annotations

import errno
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
from pytest_sandbox.runtime.protocol import ErrorCode
from pytest_sandbox.runtime.step_error import StepError

__all__ = [
    "disk_limit_unsupported",
    "find_root",
    "gain_capabilities",
    "leave_chroot",
    "limit_inotify",
    "owner",
]

# UIDs that belong to no user: above the ranges of distributions and of systemd (its document
# UIDS-GIDS), below 2**31, the highest that every file system and tool takes.
_FIRST_OWNER = 0x7F000000
_OWNERS = 1 << 16
_INOTIFY_ALLOWED = "fs.inotify.max_user_instances"
_INOTIFY_LIMIT = "user.max_inotify_instances"


def gain_capabilities() -> None:
    """Return if this process may create namespaces, else execute its program again in a new user
    namespace.

    Raises :class:`StepError` if an unprivileged user may not create one here.
    """
    if userns.has_capabilities():
        return
    try:
        userns.reexec_in_user_namespace()
    except OSError as error:
        raise StepError(
            "create a user namespace",
            error.errno,
            str(error.strerror),
            code=ErrorCode.NO_USER_NAMESPACE,
        ) from error


def leave_chroot() -> None:
    """Make the chroot of this process, if it is in one, the root of a new mount namespace.

    setns(2) changes to the root of the mount namespace: containers would be based on the root
    outside of the chroot, which the caller does not see. Raises :class:`OSError` if that is not
    permitted.
    """
    if root_check.is_chrooted():
        root_check.leave_chroot()


def owner() -> int | None:
    """Return the UID that is to own the payloads' user namespace; None for the launcher's own.

    The kernel charges inotify instances, pending signals and the like of a user namespace to its
    owner (user_namespaces(7)). An unused UID for each session leaves the share of the host's root,
    and of other sessions, alone.
    """
    if os.geteuid() or not userns.is_initial():
        return None
    return _FIRST_OWNER + secrets.randbelow(_OWNERS)


def limit_inotify() -> None:
    """Leave half of the user's inotify(7) instances to the user, if the launcher is in a user
    namespace of its own.
    """
    try:
        if namespaces.identity("user") == namespaces.identity("user", os.getppid()):
            return
    except PermissionError:  # the parent is in the user namespace outside of this one
        pass
    allowed = sysctl.value(_INOTIFY_ALLOWED)
    # The kernel may lack inotify, or an outer container may have mounted /proc/sys read-only.
    with suppress(OSError):
        sysctl.write(_INOTIFY_LIMIT, str(int(allowed or 0) // 2 or 1))


def find_root(directory: str) -> host_root.HostRoot:
    """Read the host's mounts, and return what new containers are based on; ``directory`` is the
    session's own.
    """
    if userns.is_initial():
        return host_root.for_root()
    # A new name each time: running containers use the skeletons of before.
    skeleton = f"{directory}/skeleton-{len(os.listdir(directory))}"
    work_directories = [
        process.working_directory(os.getppid()),
        sys.prefix,
        os.environ.get("TMPDIR", "/tmp"),
        paths.images(),
        os.path.expanduser("~"),
    ]
    return host_root.for_user(skeleton, work_directories, _layers_directory())


def disk_limit_unsupported(root: host_root.HostRoot, disk: int) -> UnsupportedError:
    """Return the error for ``disk`` on a layer that is not in memory, for an unprivileged user: a
    file system on a loop device could be limited, and only root may mount one.
    """
    what = "For an unprivileged user, only a layer in memory can be limited"
    if root.layers is None:
        return UnsupportedError(
            f'disk={disk} with storage="disk"', f'{what}: leave storage="disk" out, or run as root.'
        )
    release = os.uname().release
    return UnsupportedError(
        f"disk={disk}",
        f"{what}, which takes Linux 6.6 or newer (this is {release}): use such a kernel, run as "
        "root, or leave disk= out.",
    )


def _layers_directory() -> str | None:
    """Return a directory for writable layers, or None where they can be in memory.

    An unprivileged user's overlay keeps its state in user attributes (overlayfs.rst, userxattr),
    which tmpfs has since Linux 6.6. Raises OSError if no directory has them.
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
        errno.EOPNOTSUPP,
        "no directory for writable layers, which cannot be in memory before Linux 6.6 "
        f"({reasons}). Set PYTEST_SANDBOX_HOME to a directory on another file system",
    )
