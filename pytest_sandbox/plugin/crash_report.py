"""How a test's process ended, where it ended before its report: the first line says it, the rest
shows what is known.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from pytest_sandbox.outcome import Exited, OOMKilled, Outcome, Signaled, Stats, TimedOut
from pytest_sandbox.plugin.display import escaped

if TYPE_CHECKING:
    from pytest_sandbox.plugin.report_channel import Receiver

__all__ = ["mib", "refused", "said"]

_STACK_LINES = 60


def mib(size: int | None) -> str:
    """Return a size in words."""
    if size is None:
        return "unknown"
    return f"{size / (1 << 20):.1f} MiB" if size % (1 << 20) else f"{size >> 20} MiB"


def refused(invalid: str) -> str:
    """Return what is to be said of a test whose process sent a message that cannot be true."""
    return (
        f"the test's process sent an invalid report: {escaped(invalid)}. Nothing that it reported "
        "is believed; "
        f"look for what writes to its descriptors or replaces parts of pytest in it."
    )


def said(outcome: Outcome, receiver: Receiver, stats: Stats) -> str:
    """Return what is to be said of a test whose process ended with ``outcome`` before all was
    reported.
    """
    stack = escaped(_stack(bytes(receiver.stack).decode(errors="replace")))
    internal = next(iter(receiver.of("internal")), None)
    if internal is not None:
        return f"the test's process failed outside of the test's phases:\n{internal}"
    if isinstance(outcome, OOMKilled):
        return _killed_for_memory(outcome) + stack
    if isinstance(outcome, TimedOut):
        running = "".join(f"\n  {escaped(line)}" for line in outcome.processes)
        return (
            f"timeout: still running after {outcome.limit:g} s, so it was "
            f"killed{stack}\nprocesses in the container:{running}"
        )
    if isinstance(outcome, Signaled):
        return _signaled(outcome.signal, stats) + stack
    return _exited(outcome, receiver) + stack


def _killed_for_memory(outcome: OOMKilled) -> str:
    limit = (
        f"limit {mib(outcome.limit)}"
        if outcome.limit is not None
        else "no limit of the container's: the machine's memory was full"
    )
    victim = f" ({escaped(outcome.victim)})" if outcome.victim else ""
    files = (
        f', of which {mib(outcome.files)} files (what it wrote counts as memory; storage="disk" '
        "does not)"
        if outcome.files
        else ""
    )
    return (
        f"killed for memory: {limit}, peak {mib(outcome.peak)}{files}; killed was the test's "
        f"own process{victim}"
    )


def _signaled(number: int, stats: Stats) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal
        name = f"signal {number}"
    if number != signal.SIGKILL:
        return f"killed by {name}"
    return (
        f"killed by {name}, which came from inside: the kernel killed {stats.oom_kills or 0} "
        "of its processes for memory, and nobody outside did it"
    )


def _exited(outcome: Exited, receiver: Receiver) -> str:
    early = (
        f"the test's process ended with status {outcome.status} before the test was over "
        "(os._exit?)"
    )
    if receiver.strange:
        early += "; something else than reports came on the descriptor on which they travel"
    return early


def _stack(text: str) -> str:
    """Return faulthandler's stacks without the frames of pytest, which are below the test's own in
    each.
    """
    if not text.strip():
        return ""
    shown: list[str] = []
    skipping = False
    for line in text.strip().splitlines():
        is_frame = line.startswith("  File ")
        skipping = is_frame and (skipping or "/_pytest/" in line or "/pluggy/" in line)
        if not skipping:
            shown.append(line)
    return "\n" + "\n".join(shown[:_STACK_LINES])
