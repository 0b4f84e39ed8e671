"""The hint for a test that looks for a process which runs outside: a container has PIDs of its own,
and a test's process, which is a fork, is not the parent of the processes that pytest has started.

So a signal to such a process fails, procfs does not have it, and Popen.poll() returns 0, as if it
had ended. The hint is given only if pytest has a child of that PID.
"""

from __future__ import annotations

import os
import re
from subprocess import Popen
from typing import TYPE_CHECKING

from pytest_sandbox.linux import process
from pytest_sandbox.plugin.error_frames import local_variables
from pytest_sandbox.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["describe", "pid_in"]

_IN_PROC = re.compile(rf"{process.PROC}/(\d{{1,10}})(/|$)")
_PID_NAME = re.compile(r"(?:.*_)?pid", re.IGNORECASE)
#: What multiprocessing asserts in every method of a process that this one has not started.
_NOT_A_CHILD = "a child process"
_MAX_ATTRIBUTES = 100


def pid_in(error: BaseException) -> str:
    """Return the PID of a process that an exception is about and that may run outside; "" if it is
    about none. Called in the test's process.
    """
    if isinstance(error, FileNotFoundError):
        match = _IN_PROC.match(error.filename) if isinstance(error.filename, str) else None
        return match[1] if match else ""
    if isinstance(error, ProcessLookupError):
        return next(_pids(error, is_polled=False), "")
    if type(error).__name__ == "NoSuchProcess":  # of psutil
        pid = getattr(error, "pid", None)
        return str(pid) if type(pid) is int else ""
    return next(_pids(error, is_polled=True), "") if isinstance(error, AssertionError) else ""


def _pids(error: BaseException, *, is_polled: bool) -> Iterator[str]:
    """Yield the PIDs in local variables: those of process objects, and numbers by their names.

    With ``is_polled`` only of processes of which the test believes that they have ended well, which
    Popen returns for one that is not a child; and if multiprocessing has noticed it itself.
    """
    is_refused = is_polled and _NOT_A_CHILD in str(error)
    for name, value in local_variables(error):
        if not is_polled and type(value) is int and _PID_NAME.fullmatch(name):
            yield str(value)
        for one in (value, *_attributes(value)):
            if isinstance(one, Popen) and (not is_polled or one.returncode == 0):
                yield str(one.pid)
            elif is_refused and type(one).__module__.startswith("multiprocessing."):
                # Of a process that this one has not started, the property "ident" raises too.
                popen = getattr(one, "_popen", None)
                pid = getattr(popen, "pid", None)
                if type(pid) is int:
                    yield str(pid)


def _attributes(value: object) -> list[object]:
    """Return the attributes of an object, such as a fixture that has started a process."""
    try:
        return list(vars(value).values())[:_MAX_ATTRIBUTES]
    except Exception:  # noqa: BLE001 - it has none, or it is an object of the suite's
        return []


def describe(pid: str) -> list[str]:
    """Return the hint if the process is a child of the pytest process, or a descendant of it."""
    own = os.getpid()
    found = [one for one in process.descendants(own) if str(one) == pid and one != own]
    if not found:
        return []
    (number,) = found
    name = printable(os.fsdecode(process.comm(number)))
    hint = (
        f"Process {number} ({name}) runs outside: a fixture with a higher scope has started it. A "
        "container has PIDs of its own, and the test's process is not its parent, so that Popen "
        "takes it for ended. Start it in a function-scoped fixture, which runs inside; or set "
        'scope= ("module", ...), with which fixtures of that scope run inside too.'
    )
    return [hint]
