"""``python -m bench.alive COUNT``: so many containers alive at once, what each weighs, and what
starting them cost.
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
    """The memory of a process in kB, pages that it shares counted by its share (PSS)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def pid_namespace(pid: int | str) -> str:
    return Path(f"/proc/{pid}/ns/pid").readlink().name


def by_namespace(pids: list[int]) -> dict[str, int]:
    """The summed PSS of all processes, by the PID namespace that they live in."""
    sums: dict[str, int] = defaultdict(int)
    for pid in pids:
        with suppress(
            FileNotFoundError, ProcessLookupError
        ):  # the launcher makes the next one meanwhile
            sums[pid_namespace(pid)] += proportional_kb(pid)
    return sums


def main(count: int) -> None:
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
