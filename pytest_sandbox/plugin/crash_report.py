"""The text of a failure when a test process ended before its last report.

results.py calls this. The first line says how the process ended: the limit, the signal or the exit
status. The rest shows what is known, such as the stack that faulthandler wrote.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from pytest_sandbox.outcome import Exited, OOMKilled, Outcome, Signaled, Stats, TimedOut
from pytest_sandbox.plugin.units import mib
from pytest_sandbox.printable import TEXT, printable

if TYPE_CHECKING:
    from pytest_sandbox.plugin.report_channel import Receiver

__all__ = ["describe", "invalid_report"]

_MAX_STACK_LINES = 60


def invalid_report(problem: str) -> str:
    """Return the text for a test whose process sent an invalid message."""
    return (
        f"the test's process sent an invalid report: {printable(problem, TEXT)}. All its reports "
        "are ignored. Check whether the test writes to descriptors that it did not open, or "
        "replaces parts of pytest."
    )


def describe(outcome: Outcome, receiver: Receiver, stats: Stats) -> str:
    """Return the text for a test whose process ended early."""
    internal = next(receiver.of_kind("internal"), None)
    if internal is not None:
        return f"the test's process failed outside of the test's phases:\n{internal}"
    stack = _stack(bytes(receiver.stack).decode(errors="replace"))
    if isinstance(outcome, TimedOut):
        return _timed_out(outcome, stack)
    if isinstance(outcome, OOMKilled):
        return _oom_killed(outcome) + stack
    if isinstance(outcome, Signaled):
        return _signaled(outcome.signal, stats) + stack
    return _exited(outcome, receiver) + stack


def _timed_out(outcome: TimedOut, stack: str) -> str:
    processes = "".join(f"\n  {printable(line, TEXT)}" for line in outcome.processes)
    return (
        f"timeout: still running after {outcome.limit:g} s, so it was killed{stack}\n"
        f"processes in the container:{processes}"
    )


def _oom_killed(outcome: OOMKilled) -> str:
    limit = "no limit of the container: the machine ran out of memory"
    if outcome.limit is not None:
        limit = f"limit {mib(outcome.limit)}"
    files = ""
    if outcome.files:
        files = (
            f", of which {mib(outcome.files)} files (the files that a test writes count as "
            'memory, except with storage="disk")'
        )
    victim = f" ({printable(outcome.victim, TEXT)})" if outcome.victim else ""
    return (
        f"killed for memory: {limit}, peak {mib(outcome.peak)}{files}; "
        f"the kernel killed the test's own process{victim}"
    )


def _signaled(number: int, stats: Stats) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal
        name = f"signal {number}"
    if number != signal.SIGKILL:
        return f"killed by {name}"
    return (
        f"killed by {name}, sent by a process in the container: no timeout has expired, and the "
        f"kernel has killed {stats.oom_kills or 0} processes inside for memory"
    )


def _exited(outcome: Exited, receiver: Receiver) -> str:
    text = (
        f"the test's process ended with status {outcome.status} before the test was over "
        "(os._exit?)"
    )
    if receiver.has_foreign_data:
        text += "; data that is not a report was written to the report channel"
    return text


def _stack(text: str) -> str:
    """Return what faulthandler wrote, without the frames of pytest that are below the test's."""
    if not text.strip():
        return ""
    shown: list[str] = []
    is_skipping = False
    for line in printable(text, TEXT).strip().splitlines():
        is_frame = line.startswith("  File ")
        is_skipping = is_frame and (is_skipping or "/_pytest/" in line or "/pluggy/" in line)
        if not is_skipping:
            shown.append(line)
    return "\n" + "\n".join(shown[:_MAX_STACK_LINES])
