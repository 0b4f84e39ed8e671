"""The row of the benchmark about services: how long until a server has answered a query."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.contestants import PODMAN
from bench.measure import Series
from bench.table_row import Row, figure

if TYPE_CHECKING:
    from bench.rows import Bench

_GAP_MS = 100
_REDIS = "Redis"
_BY_PODMAN = "podman run -d redis-server (host's network, no overlay)"
#: The greatest ratio to podman.
_AT_MOST = 0.1


def _worker(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "bench.service_worker", *arguments)


def services(bench: Bench) -> Row:
    """Measure the servers that are installed."""
    title = "A service, from the request to the first answered query"
    series = []
    if shutil.which("redis-server"):
        series.append(Series(_REDIS, _worker("redis"), at_most=12.0))
        series += _detached(bench)
    if shutil.which("pg_ctlcluster"):
        clone = "a clone of PostgreSQL with 200,000 rows"
        series += [
            Series(clone, _worker("postgres", "0"), at_most=75.0),
            Series(
                f"{clone}, ahead=1, after a test of {_GAP_MS} ms",
                _worker("postgres", "1"),
                gap_ms=_GAP_MS,
                at_most=10.0,
            ),
        ]
    if not series:
        return Row("services", title, [], ["Neither Redis nor PostgreSQL is installed."])
    figures, samples = bench.compare(series, size=min(bench.scale.size, 5))
    if _BY_PODMAN in samples:
        compared = figure(replace(series[0], against=_BY_PODMAN, at_most=_AT_MOST), samples)
        figures.insert(1, replace(compared, label=f"{_REDIS}, compared with podman"))
    return Row("services", title, figures, _notes(bench))


def _detached(bench: Bench) -> list[Series]:
    """Return Redis in the background, by our command line and, if it works here, by podman."""
    ours = "pytest-sandbox run -d redis-server (own network, published port)"
    worker = _worker("detached_redis")
    if _why_no_podman(bench):
        return [Series(ours, worker)]
    return [
        Series(ours, worker, against=_BY_PODMAN),
        Series(_BY_PODMAN, _worker("podman_redis"), slower=2),
    ]


def _why_no_podman(bench: Bench) -> str:
    """Return why podman is not measured, or nothing."""
    if any(peer.label.startswith(PODMAN) for peer in bench.peers):
        return ""
    missing = "podman is not installed, so nothing is compared with it."
    return next((line for line in bench.failing_peers if line.startswith(PODMAN)), missing)


def _notes(bench: Bench) -> list[str]:
    return [line for line in (_why_no_podman(bench),) if line]
