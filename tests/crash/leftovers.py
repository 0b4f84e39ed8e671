"""What a session has left on this host, found by its name, which starts with its client's PID."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from pytest_sandbox import paths
from pytest_sandbox.client import cleanup
from pytest_sandbox.linux import cgroup

__all__ = ["await_no_processes", "children_of", "containers_of", "launcher_of", "of", "processes"]


def read(path):
    """Return the content of a file, empty if it cannot be read."""
    with suppress(OSError), open(path, "rb") as file:
        return file.read()
    return b""


def children_of(pid):
    """Return the PIDs of the children of a process."""
    return [int(child) for child in read(f"/proc/{pid}/task/{pid}/children").split()]


def every_pid():
    """Return the PIDs of all processes."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _is_dead(pid):
    status = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return not status or status[0] in {b"Z", b"X"}


def processes(client):
    """Return all that runs for a client: the launcher and its helpers, which have the session's
    name as an argument, and what is in the session's cgroups.
    """
    start = f"{client:x}-".encode()
    found = []
    for pid in every_pid():
        args = read(f"/proc/{pid}/cmdline").split(b"\0")
        is_launcher = any(arg.startswith(start) and arg.count(b"-") == 1 for arg in args)
        is_inside = b"/pytest-sandbox-" + start in read(f"/proc/{pid}/cgroup")
        if (is_launcher or is_inside) and not _is_dead(pid):
            found.append(pid)
    return found


def launcher_of(client):
    """Return the PID of a client's launcher, 0 if there is none (yet)."""
    for pid in every_pid():
        fields = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        is_child = len(fields) > 1 and int(fields[1]) == client
        if is_child and f"{client:x}-".encode() in read(f"/proc/{pid}/cmdline"):
            return pid
    return 0


def containers_of(client):
    """Return the PIDs of the inits: PID 1 of a PID namespace below this one."""
    found = []
    for pid in processes(client):
        lines = read(f"/proc/{pid}/status").splitlines()
        pids = next((line.split() for line in lines if line.startswith(b"NSpid:")), [])
        if len(pids) > 2 and pids[-1] == b"1":
            found.append(pid)
    return found


def await_no_processes(client, seconds=20):
    """Wait until nothing runs for a client any more; return what still does."""
    deadline = time.monotonic() + seconds
    while (left := processes(client)) and time.monotonic() < deadline:
        os.sched_yield()
    return [
        (pid, read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace")[:200])
        for pid in left
    ]


def _files(client):
    """Return the files, cgroups and mounts with the name of a client's session."""
    start = f"{client:x}-"
    state = Path(cleanup.state_directory())
    found = [path for path in state.iterdir() if path.name.startswith(start)]
    found += (Path(paths.images()) / "writable").glob(f"{start}*")
    for name, directories in cgroup.find_hierarchy().sessions().items():
        found += directories if name.startswith(start) else ()
    mounts = read("/proc/self/mountinfo").decode(errors="replace").splitlines()
    return [*map(str, found), *(line for line in mounts if start in line)]


def of(client, seconds=20):
    """Wait until nothing runs for a client, clean up, and return what is left of its session.

    More than one cleanup may be needed: a dying launcher holds its lock until after its process
    is listed as dead, and another session may clean up at the same time.
    """
    running = await_no_processes(client)
    deadline = time.monotonic() + seconds
    cleanup.remove_leftovers()
    while _files(client) and time.monotonic() < deadline:
        cleanup.remove_leftovers()
    return [*running, *_files(client)]
