"""Interleaved measuring: each series in a fresh process of its own, in blocks A B A B, so that
drift of the machine hits all alike.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).parents[1]
# What was left for the background by one block (a container made ready ahead, a teardown) must not
# be paid by the next block.
SETTLE_SECONDS = 0.05


@dataclass(frozen=True)
class Series:
    """One line of a table: a process that repeats an operation, and how it is treated between the
    rounds.
    """

    label: str
    argv: tuple[str, ...]
    gap_ms: int = 0
    busy_ms: int = 0
    slower: int = 1  # how many times fewer rounds this series gets
    against: str = ""  # the label of the series that it is compared with
    at_most: float | None = None  # what the ratio must not pass


@dataclass
class Sample:
    """What was measured of one series: its blocks of milliseconds, and how long its leavings took
    after the last round.
    """

    blocks: list[list[float]] = field(default_factory=list)
    drain_ms: float = 0.0

    @property
    def times(self) -> list[float]:
        return [ms for block in self.blocks for ms in block]

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    @property
    def p90(self) -> float:
        times = sorted(self.times)
        return times[min(len(times) - 1, len(times) * 9 // 10)]

    def paired_ratio(self, other: Sample) -> float:
        """The median of the ratios of neighbouring blocks: what is left when the machine's speed
        changes during the run.
        """
        pairs = zip(self.blocks, other.blocks, strict=True)
        return statistics.median(
            statistics.median(own) / statistics.median(its) for own, its in pairs
        )


def python(operation: str, *arguments: object) -> tuple[str, ...]:
    """The command of a fresh interpreter that repeats *operation* of bench/worker.py."""
    return (sys.executable, "-m", "bench.worker", operation, *map(str, arguments))


class Worker:
    """A fresh process that answers "COUNT GAP_MS BUSY_MS" by a list of COUNT times in
    milliseconds.
    """

    def __init__(self, argv: Iterable[str]) -> None:
        self.argv = (*argv,)
        self.process = subprocess.Popen(
            self.argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, count: int, gap_ms: int = 0, busy_ms: int = 0) -> None:
        assert self.process.stdin
        print(count, gap_ms, busy_ms, file=self.process.stdin, flush=True)

    def answer(self) -> list[float]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line.endswith("]\n"):
            raise RuntimeError(
                f"{self.argv} ended with status {self.process.wait()} instead of answering"
            )
        times: list[float] = json.loads(line)
        return times

    def rounds(self, count: int, gap_ms: int = 0, busy_ms: int = 0) -> list[float]:
        self.ask(count, gap_ms, busy_ms)
        return self.answer()

    def finish(self) -> float:
        """End the process and wait until nothing that it started is left: the milliseconds that
        this took.
        """
        assert self.process.stdin
        left = [os.pidfd_open(pid) for pid in descendants(self.process.pid)]
        start = time.perf_counter()
        self.process.stdin.close()
        self.process.wait()
        for pidfd in left:
            select.select([pidfd], [], [])
            os.close(pidfd)
        took = (time.perf_counter() - start) * 1e3
        if self.process.stdout:
            self.process.stdout.close()
        return took


def descendants(pid: int) -> Iterator[int]:
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            pids = [int(word) for word in children.read_text().split()]
        except OSError:  # a thread that ended meanwhile
            continue
        for child in pids:
            yield child
            yield from descendants(child)


def block(worker: Worker, series: Series, size: int) -> list[float]:
    """One block; its first round is not counted: it alone comes after an idle pause that the others
    don't have.
    """
    time.sleep(SETTLE_SECONDS)
    return worker.rounds(max(1, size // series.slower) + 1, series.gap_ms, series.busy_ms)[1:]


def interleave(series: list[Series], *, blocks: int, size: int) -> dict[str, Sample]:
    """Measure all *series*: start all, warm up, then *blocks* rounds of one block each, forwards
    and backwards in turn.
    """
    workers = {one.label: Worker(one.argv) for one in series}
    samples = {one.label: Sample() for one in series}
    for one in series:
        block(workers[one.label], one, size)
    for turn in range(blocks):
        for one in series if turn % 2 else reversed(series):
            samples[one.label].blocks.append(block(workers[one.label], one, size))
    for one in series:
        samples[one.label].drain_ms = workers[one.label].finish()
    return samples
