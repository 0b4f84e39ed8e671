"""``python -m bench.alive COUNT``: the memory and the start time of COUNT containers that run at
once.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections import defaultdict
from contextlib import ExitStack, suppress
from pathlib import Path

from bench.measure import descendants
from bench.worker import clocked, limited


def proportional_kb(pid: int) -> int:
    """Return the memory of a process in kB, with its share of shared pages (PSS, proc(5))."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def pid_namespace(pid: int | str) -> str:
    """Return the name of the PID namespace of a process, such as ``pid:[4026531836]``."""
    return Path(f"/proc/{pid}/ns/pid").readlink().name


def by_namespace(pids: list[int]) -> dict[str, int]:
    """Return the sum of the processes' PSS in kB for each PID namespace."""
    sums: dict[str, int] = defaultdict(int)
    for pid in pids:
        # The launcher prewarms containers meanwhile, whose short-lived processes can be gone.
        with suppress(FileNotFoundError, ProcessLookupError):
            sums[pid_namespace(pid)] += proportional_kb(pid)
    return sums


def main(count: int) -> None:
    """Start the containers, and print the figures as JSON."""
    with ExitStack() as stack:
        containers, times = [], []
        for _ in range(count):
            container = limited()
            times.append(clocked(container.start))
            stack.callback(container.close)
            containers.append(container)
        sums = by_namespace(list(descendants(os.getpid())))
        launcher = sums.pop(pid_namespace("self"), 0)
        idle = [sums[pid_namespace(container.pid)] for container in containers]
    tenth = max(1, count // 10)
    result = {
        "pss_kb": statistics.median(idle),
        "with_launcher_kb": statistics.fmean(idle) + launcher / count,
        "first_ms": statistics.median(times[:tenth]),
        "last_ms": statistics.median(times[-tenth:]),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]))
