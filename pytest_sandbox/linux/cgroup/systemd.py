"""Ask the user's systemd manager for a delegated cgroup, and move the calling process into it.

This does for a running process what ``systemd-run --user --scope -p Delegate=yes`` does for a new
command: it calls StartTransientUnit of org.freedesktop.systemd1(5). It uses busctl(1), which is
part of systemd, so no D-Bus library is needed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

from pytest_sandbox.linux.cgroup.base import SCOPE
from pytest_sandbox.linux.cgroup.find import find_hierarchy
from pytest_sandbox.linux.cgroup.interface_files import read
from pytest_sandbox.linux.cgroup.mounts import parse_own

if TYPE_CHECKING:
    from pytest_sandbox.linux.cgroup.base import Hierarchy

__all__ = ["find_delegated_hierarchy", "has_manager", "move_into_scope"]

_LIMITS = frozenset({"memory", "cpu", "pids"})
_TIMEOUT = 5.0
_METHOD = (
    "org.freedesktop.systemd1",
    "/org/freedesktop/systemd1",
    "org.freedesktop.systemd1.Manager",
    "StartTransientUnit",
)
_SIGNATURE = "ssa(sv)a(sa(sv))"


def find_delegated_hierarchy() -> Hierarchy:
    """Return the hierarchy of this host, after asking systemd for a scope if that is needed.

    It is needed on cgroup v2 if this process may not set the usual limits.
    """
    found = find_hierarchy()
    if found.version != 2 or found.controllers >= _LIMITS or not has_manager():
        return found
    return find_hierarchy() if move_into_scope(f"{SCOPE}{os.getpid()}.scope") else found


def has_manager() -> bool:
    """Return whether this user seems to have a systemd manager: its bus exists, and busctl(1)."""
    return (
        os.geteuid() != 0
        and shutil.which("busctl") is not None
        and os.path.exists(f"{_runtime_directory()}/bus")
    )


def _runtime_directory() -> str:
    return os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"


def move_into_scope(name: str) -> bool:
    """Have the manager move the calling process into a new scope; return whether it did.

    It fails if the user has no right to it, or the kernel lacks a feature.
    """
    before = _own_cgroup()
    # busctl(1), "Parameter Formatting": a signature, and for an array the number of its items.
    pids = ("PIDs", "au", "1", str(os.getpid()))
    delegate = ("Delegate", "b", "true")
    collect = ("CollectMode", "s", "inactive-or-failed")
    arguments = (name, "fail", "3", *pids, *delegate, *collect, "0")
    try:
        done = subprocess.run(
            ["busctl", "--user", "--quiet", "call", *_METHOD, _SIGNATURE, *arguments],
            env={**os.environ, "XDG_RUNTIME_DIR": _runtime_directory()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0 and _wait_for_move(before, time.monotonic() + _TIMEOUT)


def _wait_for_move(before: str, deadline: float) -> bool:
    """Wait until this process is in another cgroup than ``before``; return False if it is late.

    The manager replies when the job is queued, and reports its completion to subscribers only.
    """
    while _own_cgroup() == before:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def _own_cgroup() -> str:
    return parse_own(read("/proc/self/cgroup")).get("", "/")
