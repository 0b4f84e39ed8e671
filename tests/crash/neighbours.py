"""Run sessions, several at a time, and kill every fifth: ``neighbours.py SESSIONS AT_ONCE SEED``.

Prints the failures of the others. Several of these programs run at the same time, some in a mount
namespace with a /run of its own: the start, cleanup and end of a session may disturb no other.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback

from pytest_sandbox import Container
from pytest_sandbox.client import session


def live(number: int) -> None:
    """Run a session: a start, containers with cgroups of different kinds, moments without one."""
    for turn in range(3):
        asked = (64 + number % 32) << 20
        with Container(memory=asked, cpuset="0" if turn == 1 else None) as container:
            container.run(["true"], check=True)
            if turn == 2:
                container.pause()
                container.unpause()
            assert container.stats().memory_limit == asked
        missing = [
            directory
            for directory in session.current().session.directories
            if not os.path.isdir(directory)
        ]
        assert missing == []


def child(number: int) -> None:
    """Run one session in a fork; its exit status is 0 if nothing disturbed it."""
    status = 1
    try:
        live(number)
        session._close_at_exit()
        status = 0
    except BaseException:  # noqa: BLE001 - it is told
        sys.stdout.write(f"session {number}: {traceback.format_exc()}\n")
        sys.stdout.flush()
    finally:
        os._exit(status)


def main() -> None:
    sessions, at_once, seed = map(int, sys.argv[1:])
    random.seed(seed)
    running: dict[int, tuple[int, float | None]] = {}
    started = disturbed = 0
    while started < sessions or running:
        while started < sessions and len(running) < at_once:
            started += 1
            pid = os.fork()
            if not pid:
                child(started)
            running[pid] = (
                started,
                time.monotonic() + random.uniform(0, 0.5) if started % 5 == 0 else None,
            )
        for pid, (_number, end) in list(running.items()):
            if end is not None and time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            disturbed += os.waitstatus_to_exitcode(status) not in {0, -signal.SIGKILL}
            del running[pid]
        else:
            time.sleep(0.005)
    sys.stdout.write(f"{disturbed} of {sessions} sessions were disturbed\n")


if __name__ == "__main__":
    main()
