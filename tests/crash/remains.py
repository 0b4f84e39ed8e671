"""What of a session is left on this host, found by the session's name, which begins with its
client's process number.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from pytest_sandbox import paths
from pytest_sandbox.client import cleanup
from pytest_sandbox.linux import cgroup

__all__ = ["all_gone", "await_no_processes", "containers_of", "launcher_of", "processes", "remains"]


def _read(path):
    with suppress(OSError), open(path, "rb") as file:
        return file.read()
    return b""


def everybody():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _is_dead(pid):
    status = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return not status or status[0] in {b"Z", b"X"}


def processes(client):
    """Everything that runs for a client: the launcher and its helpers by their arguments, the rest
    by its groups.
    """
    start = f"{client:x}-".encode()
    found = []
    for pid in everybody():
        arguments = _read(f"/proc/{pid}/cmdline").split(b"\0")
        helper = any(word.startswith(start) and word.count(b"-") == 1 for word in arguments)
        if (helper or b"/pytest-sandbox-" + start in _read(f"/proc/{pid}/cgroup")) and not _is_dead(
            pid
        ):
            found.append(pid)
    return found


def launcher_of(client):
    """The launcher's number, 0 where there is none (yet)."""
    for pid in everybody():
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        if (
            len(fields) > 1
            and int(fields[1]) == client
            and f"{client:x}-".encode() in _read(f"/proc/{pid}/cmdline")
        ):
            return pid
    return 0


def containers_of(client):
    """The inits: first in a PID namespace below this one."""
    found = []
    for pid in processes(client):
        numbers = next(
            (
                line.split()
                for line in _read(f"/proc/{pid}/status").splitlines()
                if line.startswith(b"NSpid:")
            ),
            [],
        )
        if len(numbers) > 2 and numbers[-1] == b"1":
            found.append(pid)
    return found


def await_no_processes(client, seconds=20):
    """Wait until nothing runs for a client any more; returns what still does."""
    deadline = time.monotonic() + seconds
    while (left := processes(client)) and time.monotonic() < deadline:
        os.sched_yield()
    return [
        (pid, _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace")[:200])
        for pid in left
    ]


def remains(client):
    """Files, groups and mounts with the name of a client's session, besides what is swept."""
    start = f"{client:x}-"
    found = [
        str(path)
        for path in Path(cleanup.state_directory()).iterdir()
        if path.name.startswith(start)
    ]
    found += list((Path(paths.images()) / "writable").glob(f"{start}*"))
    found += [
        directory
        for name, directories in cgroup.find_hierarchy().sessions().items()
        if name.startswith(start)
        for directory in directories
    ]
    found += [
        line
        for line in _read("/proc/self/mountinfo").decode(errors="replace").splitlines()
        if start in line
    ]
    return [str(one) for one in found]


def all_gone(client, seconds=20):
    """Wait until nothing runs for a client, and sweep; returns what is left of its session:
    nothing.

    More than one sweep may be needed: a dying launcher holds its lock a moment longer than it is
    seen, and another session may sweep the same one.
    """
    left = await_no_processes(client)
    deadline = time.monotonic() + seconds
    cleanup.sweep()
    while remains(client) and time.monotonic() < deadline:
        cleanup.sweep()
    return [*left, *remains(client)]
