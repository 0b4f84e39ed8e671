"""``top``: the processes of a running container."""

from __future__ import annotations

import argparse
import pwd
import subprocess
import time
from typing import TYPE_CHECKING

from pytest_sandbox.cli import output
from pytest_sandbox.cli.verb import Verb
from pytest_sandbox.errors import ContainerStopped, SandboxError

if TYPE_CHECKING:
    from pytest_sandbox.linux.process_table import ProcessEntry

__all__ = ["VERBS"]

_COLUMNS = ("UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD")
_DAY = 86400
#: Seconds for ps(1) to list all processes of the host.
_PS_TIMEOUT = 30.0


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="CONTAINER", help="its id, the beginning of it, or its name")
    parser.add_argument(
        "options",
        metavar="OPTION",
        nargs=argparse.REMAINDER,
        help="options of this host's ps(1), which then lists the processes: -o pid,comm",
    )


def _top(found: argparse.Namespace) -> int:
    from pytest_sandbox.linux.process_table import list_namespace

    processes = list_namespace(_init_of(found.id))
    if found.options:
        columns, rows = _by_ps(found.options, {one.pid for one in processes})
    else:
        columns, rows = list(_COLUMNS), [_row(one) for one in processes]
    output.print_table(columns, rows)
    return 0


def _init_of(name: str) -> int:
    """Return the PID of a container's init. Raises :class:`SandboxError` unless it runs."""
    from pytest_sandbox.container import detached, remote

    running = detached.list_running()
    ended = detached.find(name, detached.list_detached())
    if ended is not None and not ended.is_running:
        raise ContainerStopped(f"the container {name} is not running.")
    return remote.find(name, running).pid


def _row(one: ProcessEntry) -> list[str]:
    started = time.localtime(time.time() - one.age)
    minutes, seconds = divmod(int(one.cpu), 60)
    return [
        _user(one.uid),
        str(one.pid),
        str(one.parent),
        str(int(100 * one.cpu / one.age)) if one.age else "0",
        time.strftime("%H:%M" if one.age < _DAY else "%b%d", started),
        one.terminal,
        f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}",
        one.command,
    ]


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _by_ps(options: list[str], pids: set[int]) -> tuple[list[str], list[list[str]]]:
    """Return what ps(1) of this host prints of these processes, as docker does."""
    try:
        done = subprocess.run(
            ["ps", *options], capture_output=True, text=True, check=False, timeout=_PS_TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxError(f"ps: {error}. Leave out the options of ps.") from error
    if done.returncode:
        raise SandboxError(f"ps {' '.join(options)}: {done.stderr.strip().splitlines()[:1]}")
    header, *lines = done.stdout.splitlines() or [""]
    columns = header.split()
    if "PID" not in columns:
        raise SandboxError(
            f"ps {' '.join(options)}: couldn't find PID field in its output. Add pid to the columns"
        )
    at = columns.index("PID")
    rows = [line.split(None, len(columns) - 1) for line in lines]
    chosen = [row for row in rows if len(row) > at and row[at].isdigit() and int(row[at]) in pids]
    return columns, [(row + [""] * len(columns))[: len(columns)] for row in chosen]


VERBS = (
    Verb(
        name="top",
        usage="CONTAINER [OPTION OF PS...]",
        summary="List the processes of a running container, with their PIDs on this host",
        arguments=_arguments,
        run=_top,
    ),
)
