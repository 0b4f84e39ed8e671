"""Interleaved measurements: each series runs in a process of its own, in blocks A B A B, so that a
change of the machine's speed affects all series.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).parents[1]
# A pause between blocks: background work of one block (prewarming, the removal of layers) must not
# slow down the next one.
PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class Series:
    """One line of a table: a command that repeats an operation.

    Before each round the process sleeps ``gap_ms`` milliseconds, and then computes for ``busy_ms``.
    """

    label: str
    argv: tuple[str, ...]
    gap_ms: int = 0
    busy_ms: int = 0
    slower: int = 1  # it gets so many times fewer rounds
    against: str = ""  # label of the series that it is compared with
    at_most: float | None = None  # greatest allowed ratio


@dataclass
class Sample:
    """The times of one series in milliseconds, by block.

    ``drain_ms`` is the time from the end of the last round until all its processes had ended.
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
        """Return the median of the ratios of neighbouring blocks, which a change of the machine's
        speed during the run does not affect.
        """
        pairs = zip(self.blocks, other.blocks, strict=True)
        return statistics.median(
            statistics.median(own) / statistics.median(its) for own, its in pairs
        )


def python(operation: str, *arguments: object) -> tuple[str, ...]:
    """Return the command of an interpreter that repeats an operation of bench/worker.py."""
    return (sys.executable, "-m", "bench.worker", operation, *map(str, arguments))


class Worker:
    """A process that answers "COUNT GAP_MS BUSY_MS" on stdin with COUNT times in milliseconds, as
    a JSON list.
    """

    def __init__(self, argv: Iterable[str]) -> None:
        self.argv = (*argv,)
        self.process = subprocess.Popen(
            self.argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, count: int, gap_ms: int = 0, busy_ms: int = 0) -> None:
        """Start ``count`` rounds."""
        assert self.process.stdin
        print(count, gap_ms, busy_ms, file=self.process.stdin, flush=True)

    def answer(self) -> list[float]:
        """Wait for the rounds, and return their times. Raises :class:`RuntimeError` if the process
        ended.
        """
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line.endswith("]\n"):
            raise RuntimeError(
                f"{self.argv} ended with status {self.process.wait()} instead of answering"
            )
        times: list[float] = json.loads(line)
        return times

    def rounds(self, count: int, gap_ms: int = 0, busy_ms: int = 0) -> list[float]:
        """Do ``count`` rounds, and return their times."""
        self.ask(count, gap_ms, busy_ms)
        return self.answer()

    def finish(self) -> float:
        """End the process, wait until all its descendants have ended, and return the time that this
        took, in milliseconds.
        """
        assert self.process.stdin
        left = []
        for pid in descendants(self.process.pid):
            with suppress(ProcessLookupError):  # it has ended since
                left.append(os.pidfd_open(pid))
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
    """Yield the PIDs of all descendants of a process."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            pids = [int(word) for word in children.read_text().split()]
        except OSError:  # the thread has ended
            continue
        for child in pids:
            yield child
            yield from descendants(child)


def block(worker: Worker, series: Series, size: int) -> list[float]:
    """Do one block of rounds, without the first one, which alone follows a pause."""
    time.sleep(PAUSE_SECONDS)
    return worker.rounds(max(1, size // series.slower) + 1, series.gap_ms, series.busy_ms)[1:]


def interleave(series: list[Series], *, blocks: int, size: int) -> dict[str, Sample]:
    """Measure all series: start all, warm up, and run a block of each, ``blocks`` times, forwards
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
