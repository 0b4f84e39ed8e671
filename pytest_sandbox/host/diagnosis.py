"""The error for a step that the kernel refused: what was asked for, who refused it, what helps.

The kernel's answer alone often names the wrong cause: ENOSPC is a limit on namespaces, and EINVAL
of an overlay is its depth.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from pytest_sandbox.errors import SetupError, UnsupportedError
from pytest_sandbox.host import kernel, namespace
from pytest_sandbox.host.trial import Trial, attempt
from pytest_sandbox.linux import mountinfo, mounts

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["explain", "no_processes"]

_NO_PROC = (
    "Mount it before pytest starts: mount -t proc proc /proc (in a chroot: arch-chroot and schroot "
    "do)."
)
# FILESYSTEM_MAX_STACK_DEPTH, include/linux/fs.h
_NESTED = (
    "The kernel stacks two overlays at most, and / is on a stack of that height already. So on a "
    "plain root file system there are two levels of containers (a container in a container), and "
    "one in a container of docker's or podman's. Start pytest one level further out, or give "
    "image= a directory that is on no overlay, such as one in a volume."
)
_NO_PROCESSES = (
    "The limit on processes is reached: that of the user (ulimit -u), of a cgroup around pytest "
    "(pids.max; docker: --pids-limit), or kernel.pid_max. Raise it, or start fewer workers."
)


def explain(step: str, reason: str, number: int) -> UnsupportedError | SetupError:
    """Return the error for a step that failed with ``number``, an errno; ``reason`` is its text."""
    if number == errno.EAGAIN:  # not what this host is, but what runs on it now
        return SetupError(step, reason, _NO_PROCESSES)
    remedy = next(filter(None, (find(step, number) for find in _CAUSES)), "")
    if not remedy:
        remedy = kernel.denied(Trial(reason, number or errno.EIO))
    if remedy:
        return UnsupportedError(f"a container here ({step}: {reason})", remedy)
    return SetupError(step, reason)


def no_processes() -> SetupError:
    """Return the error for a fork that failed with EAGAIN."""
    return SetupError("start a process", os.strerror(errno.EAGAIN), _NO_PROCESSES)


def _without_proc(_step: str, number: int) -> str:
    is_missing = number == errno.ENOENT and not os.path.exists(mountinfo.PATH)
    return _NO_PROC if is_missing else ""


def _without_namespaces(_step: str, number: int) -> str:
    """Find the kind of namespace of which there may be no more (namespaces(7), ENOSPC)."""
    if number not in {errno.ENOSPC, errno.EUSERS}:
        return ""
    if attempt(_make_user_namespace).errno in {errno.ENOSPC, errno.EUSERS}:
        return namespace.remedy_for_user(Trial("", number))
    for name in namespace.USES:
        trial = attempt(namespace.trier(name))
        if trial.errno == errno.ENOSPC:
            return namespace.remedy_for(name)(trial)
    return ""


def _make_user_namespace() -> str:
    namespace.enter_own_user_namespace()
    return "made"


def _too_deep(step: str, number: int) -> str:
    if step not in {mounts.MOUNT_ROOT, mounts.MOUNT_FILE_SYSTEMS} or number != errno.EINVAL:
        return ""
    root = [entry.fstype for entry in mounts.list_mounts() if entry.point == "/"]
    return _NESTED if root[-1:] == ["overlay"] else ""


def _without_devices(step: str, number: int) -> str:
    if step == mounts.MOUNT_OWN and number == errno.ENOENT and not os.path.exists(os.devnull):
        return f"{os.devnull} is missing: mount a /dev that has it."
    return ""


_CAUSES: tuple[Callable[[str, int], str], ...] = (
    _without_proc,
    _without_namespaces,
    _too_deep,
    _without_devices,
)
