"""The rows of ``--sandbox-jobs`` and ``--sandbox-scope``: whole sessions, compared with plain
pytest and with pytest-xdist.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench.pytest_suite import Session, run, write_suite
from bench.table_row import Figure, Row

if TYPE_CHECKING:
    from bench.rows import Bench

__all__ = ["jobs", "jobs_memory", "scopes"]

_PARAMETERS = "import pytest, time\n@pytest.mark.parametrize('number', range({count}))\n"
_EMPTY = _PARAMETERS + "def test(number): pass\n"
_WAITING = (
    "import pytest, time\n"
    "@pytest.fixture(scope='session', autouse=True)\n"
    "def prepared():\n"
    "    end = time.process_time() + {fixture}\n"
    "    while time.process_time() < end: pass\n"
    "    return bytearray(30 << 20)\n" + _PARAMETERS + "def test(number): time.sleep(0.1)\n"
)
_COMPUTING = (
    _PARAMETERS + "def test(number):\n"
    "    end = time.process_time() + 0.02\n"
    "    while time.process_time() < end: pass\n"
)
_INSIDE = ("--sandbox",)


def _xdist(workers: int) -> tuple[str, ...]:
    return ("-p", "xdist", "-n", str(workers))


def _interleaved(
    directory: Path, series: dict[str, tuple[str, ...]], rounds: int, *, watch: bool = False
) -> dict[str, Session]:
    """Run all series in turn, and return the fastest session of each."""
    found: dict[str, Session] = {}
    for _ in range(rounds):
        for label, options in series.items():
            one = run(directory, *options, watch=watch)
            if label not in found or one.seconds < found[label].seconds:
                found[label] = one
    return found


def _figures(
    title: str, ours: str, other: str, found: dict[str, Session], at_most: float
) -> list[Figure]:
    return [
        Figure(f"{title}: {other}", found[other].seconds, "s"),
        Figure(
            f"{title}: {ours}",
            found[ours].seconds,
            "s",
            against=other,
            ratio=found[ours].seconds / found[other].seconds,
            at_most=at_most,
        ),
    ]


def jobs(bench: Bench) -> Row:
    """Measure a suite that waits and one that computes, inside, and outside with xdist."""
    is_quick = bench.scale.blocks == 1
    count, fixture = (16, 0.1) if is_quick else (400, 2)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        ours, other = "--sandbox --sandbox-jobs=8", "xdist -n 8"
        write_suite(directory, _WAITING.format(count=count, fixture=fixture))
        series = {ours: (*_INSIDE, "--sandbox-jobs=8"), other: _xdist(8)}
        found = _interleaved(directory, series, 1, watch=True)
        title = f"{count} tests that wait 100 ms, with a session fixture of {fixture} s"
        figures += _figures(title, ours, other, found, 0.55)
        figures += [
            Figure(f"the memory of all processes: {other}", found[other].memory / 1e6, "MB"),
            Figure(
                f"the memory of all processes: {ours}",
                found[ours].memory / 1e6,
                "MB",
                against=other,
                ratio=found[ours].memory / max(1, found[other].memory),
                at_most=0.25,
            ),
        ]
        ours, other = "--sandbox --sandbox-jobs=auto", "xdist -n 2"
        write_suite(directory, _COMPUTING.format(count=count))
        series = {ours: (*_INSIDE, "--sandbox-jobs=auto"), other: _xdist(2)}
        found = _interleaved(directory, series, 1 if is_quick else 2)
        figures += _figures(f"{count} tests that compute for 20 ms", ours, other, found, 1.2)
    note = "Each figure is of the fastest session; PSS is looked at every 0.25 s."
    return Row("jobs", "Tests at the same time, compared with pytest-xdist", figures, [note])


def jobs_memory(bench: Bench) -> Row:
    """Measure how the memory of pytest's process grows over many empty tests."""
    count = 200 if bench.scale.blocks == 1 else 10_000
    ours, plain = "--sandbox --sandbox-jobs=8", "plain pytest"
    series = {ours: (*_INSIDE, "--sandbox-jobs=8"), plain: ()}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_suite(directory, _EMPTY.format(count=count // 10), modules=10)
        found = _interleaved(directory, series, 1)
    figures = []
    for label, session in found.items():
        first, last = session.resident
        start = f"pytest's process after 100 tests, {label}"
        limit = 1.1 if label == ours else None
        figures += [
            Figure(start, first / 1e6, "MB"),
            Figure(
                f"at the end of {count}, {label}",
                last / 1e6,
                "MB",
                against=start,
                ratio=last / first,
                at_most=limit,
            ),
        ]
    figures.append(Figure(f"a test, {ours}", found[ours].seconds / count * 1e3))
    return Row("jobs-memory", "The memory of many tests with --sandbox-jobs=8", figures)


def scopes(bench: Bench) -> Row:
    """Measure what a test costs above plain pytest, by scope."""
    count, rounds = (50, 1) if bench.scale.blocks == 1 else (1000, 3)
    plain, shared = "plain pytest", "--sandbox --sandbox-scope=module"
    series: dict[str, tuple[str, ...]] = {
        plain: (),
        shared: (*_INSIDE, "--sandbox-scope=module"),
        "--sandbox": _INSIDE,
        "--sandbox --sandbox-jobs=auto": (*_INSIDE, "--sandbox-jobs=auto"),
    }
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_suite(directory, _EMPTY.format(count=count // 5), modules=5)
        found = _interleaved(directory, series, rounds)
    limits = {shared: 0.7, "--sandbox": 6.5, "--sandbox --sandbox-jobs=auto": 4.0}
    figures = [Figure(f"an empty test, {plain}", found[plain].seconds / count * 1e3)]
    for label, limit in limits.items():
        above = (found[label].seconds - found[plain].seconds) / count * 1e3
        cpu = (found[label].cpu_seconds - found[plain].cpu_seconds) / count * 1e3
        figures += [
            Figure(f"{label}, above plain", above, at_most=limit),
            Figure(f"{label}, CPU time of all processes above plain", cpu),
        ]
    title = f"An empty test by scope and jobs, in sessions of {count} tests in five modules"
    return Row("scopes", title, figures)
