"""What this host can do: containers are started as a test session starts them, with each setting.

A row that was found is a container that ran, so that the report cannot differ from a test session.
If a container that every session needs does not start, the probes of :mod:`pytest_sandbox.host`
are added as rows, to show who refuses what.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress

from pytest_sandbox.host import packages
from pytest_sandbox.host.capability import Capability

__all__ = ["examine"]

_START = (
    "import sys; sys.path.insert(0, {path!r}); from pytest_sandbox.doctor.examination import main; "
    "main()"
)
#: Seconds for all rows; one that waits for longer than that is reported as such.
_TIMEOUT = 120.0


def examine() -> tuple[Capability, ...]:
    """Start containers in a process of its own, which ends with them, and return the rows in the
    order of the report.
    """
    out, why = b"", ""
    try:
        out, why = _run()
    except OSError as error:
        why = f"{error.strerror}: it could not be started"
    rows, is_complete = _parsed(out)
    if not is_complete:
        rows.append(_incomplete(why))
    return (*rows, *packages.rows())


def _run() -> tuple[bytes, str]:
    """Return what the process has printed, and why it may not be complete."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    command = [sys.executable, "-I", "-c", _START.format(path=package)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/"
    ) as process:
        try:
            out, error = process.communicate(timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.communicate()[0], f"it was not complete after {_TIMEOUT:g} seconds"
    last = os.fsdecode(error).strip().rpartition("\n")[2]
    return out, last or f"it ended with status {process.returncode}"


def _parsed(out: bytes) -> tuple[list[Capability], bool]:
    """Return the rows, one a line, and whether the line that ends them is there."""
    rows: list[Capability] = []
    for line in out.splitlines():
        with suppress(ValueError):
            row = json.loads(line)
            if row is None:
                return rows, True
            rows.append(Capability(**row))
    return rows, False


def _incomplete(why: str) -> Capability:
    return Capability(
        name="examination",
        area="containers",
        use="all rows of this report",
        needed=True,
        found=False,
        why=why,
        remedy="Report it as a bug, with the output of `PYTEST_SANDBOX_DEBUG=1 pytest-sandbox "
        "doctor`.",
    )
