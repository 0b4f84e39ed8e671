"""The rows of the benchmark: the operations, how they are repeated, and what they are compared
with.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bench import egress, images, names
from bench.measure import ROOT, Sample, Series, Worker, interleave, python
from bench.table_row import Figure, Row, figure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OURS = "pytest-sandbox"
FLOOR = "the floor (C)"
HEAPS = (0, 150, 500)


@dataclass(frozen=True)
class Scale:
    """How many blocks, rounds, containers and files are measured."""

    blocks: int = 12
    size: int = 10
    in_a_row: int = 1000
    alive: int = 500
    files: tuple[int, ...] = (1, 1000, 100_000)


QUICK = Scale(blocks=1, size=2, in_a_row=20, alive=5, files=(1, 100))


@dataclass(frozen=True)
class Bench:
    """What the rows share: two commands of the floor, the peers that work, a line for each one that
    fails, and the scale.
    """

    floor_commands: list[tuple[str, ...]]
    peers: list[Series]
    failing_peers: list[str]
    scale: Scale

    def floor(
        self, label: str = FLOOR, *, gap_ms: int = 0, busy_ms: int = 0, against: str = ""
    ) -> Series:
        """Return a series of the floor."""
        return Series(
            label, self.floor_commands[0], gap_ms=gap_ms, busy_ms=busy_ms, against=against
        )

    def compare(
        self, series: list[Series], size: int | None = None
    ) -> tuple[list[Figure], dict[str, Sample]]:
        """Measure the series, and return their figures and samples."""
        samples = interleave(series, blocks=self.scale.blocks, size=size or self.scale.size)
        return [figure(one, samples) for one in series], samples


def heap_label(megabytes: int) -> str:
    return f"{megabytes or 15} MB"  # an empty Python with the library has about 15


def back_to_back(bench: Bench) -> Row:
    ours = Series(OURS, python("sandbox"), against=FLOOR, at_most=2.0)
    spawn = Series("posix_spawn of true (no container)", python("command", "true"), against=FLOOR)
    peers = [
        Series(peer.label, peer.argv, slower=peer.slower, against=FLOOR) for peer in bench.peers
    ]
    figures, samples = bench.compare([bench.floor(), ours, spawn, *peers])
    rounds = len(samples[OURS].times)
    left = (
        f"After the last of {rounds} rounds all processes of {OURS} had ended within "
        f"{samples[OURS].drain_ms:.0f} ms."
    )
    return Row(
        "create", "Create, run true, destroy, back to back", figures, [left, *bench.failing_peers]
    )


def as_waited_for(bench: Bench) -> Row:
    busy = "with 10 ms of other work before each"
    figures, _ = bench.compare(
        [
            bench.floor(),
            bench.floor(f"{FLOOR}, {busy}", busy_ms=10, against=FLOOR),
            Series(f"{OURS}, {busy}", python("sandbox"), busy_ms=10, against=FLOOR, at_most=1.0),
            Series(f"{OURS}, back to back", python("sandbox"), against=FLOOR),
        ]
    )
    return Row(
        "waited", "The same as the caller waits for it, when other work lies between", figures
    )


def heaps(bench: Bench) -> Row:
    first, *others = HEAPS
    label = f"{OURS}, {{}}".format
    base = Series(label(heap_label(first)), python("sandbox", first))
    figures, _ = bench.compare(
        [
            base,
            *(
                Series(
                    label(heap_label(mb)),
                    python("sandbox", mb),
                    against=base.label,
                    at_most=1.1 if mb == HEAPS[-1] else None,
                )
                for mb in others
            ),
        ]
    )
    return Row("heap", "The same from a process with a heap", figures)


def networks(bench: Bench) -> Row:
    figures, _ = bench.compare(
        [
            Series(OURS, python("sandbox")),
            Series(f"{OURS}, on a Network", python("networked"), against=OURS),
        ]
    )
    return Row("network", "The same on a network of containers", figures)


def idle(bench: Bench) -> Row:
    series = []
    for name, argv in ((FLOOR, bench.floor_commands[0]), (OURS, python("sandbox"))):
        base = f"{name}, back to back"
        series.append(Series(base, argv))
        for gap in (30, 100):
            limit = 1.5 if name == OURS and gap == 100 else None
            series.append(
                Series(
                    f"{name}, after {gap} ms of idling",
                    argv,
                    gap_ms=gap,
                    against=base,
                    at_most=limit,
                )
            )
    figures, _ = bench.compare(series)
    return Row("idle", "The same after the machine idled", figures)


def wall(argvs: list[tuple[str, ...]], count: int) -> float:
    """Return the seconds until all workers, at once, have done ``count`` rounds."""
    workers = [Worker(argv) for argv in argvs]
    for worker in workers:
        worker.rounds(3)
    start = time.perf_counter()
    for worker in workers:
        worker.ask(count)
    for worker in workers:
        worker.answer()
    took = time.perf_counter() - start
    for worker in workers:
        worker.finish()
    return took


def two_workers(bench: Bench) -> Row:
    count, turns = bench.scale.size * bench.scale.blocks, 3 if bench.scale.blocks > 1 else 1
    figures = []
    for name, pair in ((FLOOR, bench.floor_commands), (OURS, [python("sandbox")] * 2)):
        one = statistics.median(wall(pair[:1], count) for _ in range(turns))
        two = statistics.median(wall(pair, count) for _ in range(turns))
        figures += [
            Figure(f"{name}, one worker", count / one, "a second"),
            Figure(
                f"{name}, two workers",
                2 * count / two,
                "a second",
                against=f"{name}, one worker",
                ratio=2 * one / two,
            ),
        ]
    return Row("workers", "Two workers at once: containers a second", figures)


def in_a_row(bench: Bench) -> Row:
    count = bench.scale.in_a_row
    edge = min(50, count // 2)
    figures = []
    for name, argv in ((FLOOR, bench.floor_commands[0]), (OURS, python("sandbox"))):
        worker = Worker(argv)
        worker.rounds(5)
        times = worker.rounds(count)
        worker.finish()
        first, last = statistics.median(times[:edge]), statistics.median(times[-edge:])
        label = f"{name}, the first {edge} of {count}"
        figures += [
            Figure(label, first),
            Figure(
                f"{name}, the last {edge}",
                last,
                against=label,
                ratio=last / first,
                at_most=1.2 if name == OURS else None,
            ),
        ]
    return Row("row", f"{count} in a row", figures)


def alive(bench: Bench) -> Row:
    argv = [sys.executable, "-m", "bench.alive", str(bench.scale.alive)]
    found = json.loads(subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    figures = [
        Figure(
            "an idle container, all its processes, PSS (median)",
            found["pss_kb"] / 1024,
            "MB",
            at_most=2.0,
        ),
        Figure("the same, with its share of the launcher", found["with_launcher_kb"] / 1024, "MB"),
        Figure("start of the first of them (median of 10%)", found["first_ms"]),
        Figure("start of the last of them (median of 10%)", found["last_ms"]),
    ]
    return Row("alive", f"{bench.scale.alive} alive at once", figures)


def close_after_files(bench: Bench) -> Row:
    first, *others = bench.scale.files
    label = "close() after {:,} files".format
    most = bench.scale.files[-1]
    series = [
        Series(label(first), python("close_after", first)),
        *(
            Series(
                label(n),
                python("close_after", n),
                against=label(first),
                at_most=1.2 if n == most else None,
            )
            for n in others
        ),
    ]
    samples = interleave(series, blocks=min(bench.scale.blocks, 5), size=min(bench.scale.size, 3))
    return Row(
        "files",
        "close(), as the caller waits for it, after many files were written",
        [figure(one, samples) for one in series],
    )


def second_run(bench: Bench) -> Row:
    spawn = Series("posix_spawn of true", python("command", "true"))
    ours = Series(
        'container.run(["true"]) in a running container',
        python("second_run"),
        against=spawn.label,
        at_most=2.0,
    )
    figures, _ = bench.compare([spawn, ours], size=bench.scale.size * 2)
    return Row("second", "A second command in a running container", figures)


def call(bench: Bench) -> Row:
    figures = []
    for mb in HEAPS:
        fork = Series(f"os.fork + exit, {heap_label(mb)}", python("fork", mb))
        ours = Series(
            f"container.call(f), {heap_label(mb)}",
            python("call", mb),
            against=fork.label,
            at_most=1.3,
        )
        figures += bench.compare([fork, ours])[0]
    return Row(
        "call", "A Python callable in a running container, by the size of the process", figures
    )


def import_time(bench: Bench) -> Row:
    statements = ("import pytest_sandbox", "from pytest_sandbox import Container")
    figures, _ = bench.compare(
        [Series(statement, python("import_of", statement)) for statement in statements], size=2
    )
    return Row("import", "The import", [replace(figure, at_most=30.0) for figure in figures])


ROWS: dict[str, Callable[[Bench], Row]] = {
    "create": back_to_back,
    "waited": as_waited_for,
    "heap": heaps,
    "network": networks,
    "names": names.names,
    "egress": egress.egress,
    "idle": idle,
    "workers": two_workers,
    "row": in_a_row,
    "alive": alive,
    "files": close_after_files,
    "second": second_run,
    "call": call,
    "import": import_time,
    "images-unpack": images.unpacking,
    "images-pull": images.pulling,
    "images-start": images.starting,
}


def run_rows(bench: Bench, keys: list[str]) -> Iterator[Row]:
    for key in keys:
        yield ROWS[key](bench)
