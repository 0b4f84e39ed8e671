"""A cgroup of one's own from the systemd manager of this user: a scope that is delegated, into which
it moves the calling process.

What ``systemd-run --user --scope -p Delegate=yes`` does for a new command, for a process that runs
already: StartTransientUnit of org.freedesktop.systemd1(5), called through busctl(1), which every
systemd has, so that no library for D-Bus is needed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time

from pytest_sandbox.linux.cgroup import SCOPE, Hierarchy, parse_own, read

__all__ = ["find_hierarchy", "has_manager", "move_into_scope"]

_LIMITS = frozenset({"memory", "cpu", "pids"})
_PATIENCE = 5.0
_MANAGER = (
    "org.freedesktop.systemd1",
    "/org/freedesktop/systemd1",
    "org.freedesktop.systemd1.Manager",
    "StartTransientUnit",
)
_SIGNATURE = "ssa(sv)a(sa(sv))"


def find_hierarchy() -> Hierarchy:
    """Return the hierarchy with a place for cgroups of ours, from this user's manager where there is
    none without it.
    """
    found = Hierarchy.find()
    if found.version != 2 or found.controllers >= _LIMITS or not has_manager():
        return found
    return Hierarchy.find() if move_into_scope(f"{SCOPE}{os.getpid()}.scope") else found


def has_manager() -> bool:
    """Whether a systemd manager of this user answers on its bus, as far as can be seen without
    asking it.
    """
    return (
        os.geteuid() != 0
        and shutil.which("busctl") is not None
        and os.path.exists(f"{_runtime()}/bus")
    )


def _runtime() -> str:
    return os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"


def move_into_scope(name: str) -> bool:
    """Have the manager move the calling process into a new scope, and tell whether it has: it may
    lack the right, or the kernel.
    """
    before = _own()
    properties = [
        "3",
        "PIDs",
        "au",
        "1",
        str(os.getpid()),
        "Delegate",
        "b",
        "true",
        "CollectMode",
        "s",
        "inactive-or-failed",
    ]
    command = [
        "busctl",
        "--user",
        "--quiet",
        "call",
        *_MANAGER,
        _SIGNATURE,
        name,
        "fail",
        *properties,
        "0",
    ]
    environment = {**os.environ, "XDG_RUNTIME_DIR": _runtime()}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0 and _moved(before, time.monotonic() + _PATIENCE)


def _moved(before: str, deadline: float) -> bool:
    """Wait for the move: the manager answers when it has queued the job, and its word that the job
    is done goes to subscribers only.
    """
    while _own() == before:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def _own() -> str:
    return parse_own(read("/proc/self/cgroup")).get("", "/")
