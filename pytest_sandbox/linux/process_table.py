"""The processes of a PID namespace, with what ps(1) shows of them (proc_pid_stat(5))."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import NamedTuple

from pytest_sandbox.linux import process

__all__ = ["ProcessEntry", "list_namespace"]

#: Major numbers of pseudo-terminals (Documentation/admin-guide/devices.txt).
_FIRST_PTS, _LAST_PTS = 136, 143


class ProcessEntry(NamedTuple):
    """A process as the host sees it.

    ``age`` and ``cpu`` are in seconds; ``terminal`` is "pts/0", "?" without one.
    """

    pid: int
    parent: int
    uid: int
    age: float
    cpu: float
    terminal: str
    command: str


def list_namespace(init: int) -> list[ProcessEntry]:
    """Return the processes in the PID namespace of ``init``, without init itself, by PID."""
    with open(f"{process.PROC}/uptime", encoding="ascii") as file:
        uptime = float(file.read().split()[0])
    found = []
    for pid in sorted(int(name) for name in os.listdir(process.PROC) if name.isdigit()):
        with suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
            if pid != init and process.is_in_namespace_of(pid, init):
                found.append(_entry(pid, uptime))
    return found


def _entry(pid: int, uptime: float) -> ProcessEntry:
    directory = f"{process.PROC}/{pid}"
    with open(f"{directory}/stat", "rb") as file:
        name, _, rest = file.read().partition(b"(")[2].rpartition(b")")
    fields = rest.split()  # from the third on: the state
    with open(f"{directory}/cmdline", "rb") as file:
        command = file.read().rstrip(b"\0").replace(b"\0", b" ") or b"[%s]" % name
    ticks = os.sysconf("SC_CLK_TCK")
    return ProcessEntry(
        pid,
        int(fields[1]),
        os.stat(directory).st_uid,
        max(0.0, uptime - int(fields[19]) / ticks),
        (int(fields[11]) + int(fields[12])) / ticks,
        _terminal(int(fields[4])),
        command.decode("utf-8", "surrogateescape"),
    )


def _terminal(device: int) -> str:
    if _FIRST_PTS <= os.major(device) <= _LAST_PTS:
        return f"pts/{(os.major(device) - _FIRST_PTS) * 256 + os.minor(device)}"
    return "?"
