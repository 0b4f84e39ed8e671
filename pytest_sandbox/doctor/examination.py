"""The process that starts the containers: it prints one row a line, as JSON, then null."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_sandbox.doctor.starts import starts
from pytest_sandbox.errors import SandboxError, SetupError, UnsupportedError
from pytest_sandbox.host import probes
from pytest_sandbox.host.capability import Capability
from pytest_sandbox.linux import signals

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_sandbox.doctor.starts import Start

__all__ = ["main"]

#: Probes that are facts about the host, not reasons why a container fails.
_FACTS = frozenset({"kernel", "root", "cgroup", "pressure", "state directory"})
_NO_REASON = (
    "See the rows below for what is refused; if none is, report it as a bug, with the output of "
    "`PYTEST_SANDBOX_DEBUG=1 pytest-sandbox doctor`."
)


def main() -> None:
    """Print the rows: facts, starts, and why a start that every session needs has failed."""
    signals.reset()
    all_probes = probes.probes()
    for probe in all_probes:
        if probe.name in _FACTS:
            _print(replace(probe.row(), area="host", needed=False))
    messages = os.memfd_create("messages", os.MFD_CLOEXEC)
    os.dup2(messages, 2)
    table = starts()
    failed = [start.name for start in table if not _print(_row(start, messages)) and start.needed]
    known = {*_FACTS, *(start.name for start in table)}
    for probe in all_probes if failed else ():
        if probe.name not in known:
            _print(probe.row())
    _write("null")


def _print(row: Capability) -> bool:
    _write(json.dumps(row.to_json()))
    return row.found


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _row(start: Start, messages: int) -> Capability:
    """Start a container, and describe what happened; ``messages`` is standard error."""
    os.ftruncate(messages, 0)
    os.lseek(messages, 0, os.SEEK_SET)
    try:
        start.do()
        why, remedy, found = "works", "", True
    except UnsupportedError as error:
        why, remedy, found = f"{error.feature} is not supported here", error.remedy, False
    except SetupError as error:
        why, remedy, found = f"{error.step}: {error.reason}", error.remedy, False
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what a test session gets
        why, remedy, found = _described(error), "", False
    if not found:
        why = "; ".join([why, *_last_line(messages)])
    return Capability(
        name=start.name,
        area=start.area,
        use=start.use,
        needed=start.needed,
        found=found,
        why=why,
        remedy=remedy if found else remedy or _explained(start) or _NO_REASON,
    )


def _described(error: Exception) -> str:
    return str(error) if isinstance(error, SandboxError) else f"{type(error).__name__}: {error}"


def _last_line(messages: int) -> Iterable[str]:
    """Return what a process that failed to enter a container has written, if it has."""
    data = os.pread(messages, os.fstat(messages).st_size, 0)
    lines = [line for line in data.decode(errors="replace").splitlines() if line.strip()]
    return [lines[-1].removeprefix("pytest-sandbox: ")] if lines else []


def _explained(start: Start) -> str:
    """Return the remedy of the first probe that fails, of those that are about this setting."""
    wanted = {probe.name: probe for probe in probes.probes()}
    for name in start.probes:
        row = wanted[name].row()
        if not row.found:
            return row.remedy
    return ""
