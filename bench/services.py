"""The row of the benchmark about services: how long until a server has answered a query."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

from bench.measure import Series
from bench.table_row import Row

if TYPE_CHECKING:
    from bench.rows import Bench

_GAP_MS = 100


def _worker(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "bench.service_worker", *arguments)


def services(bench: Bench) -> Row:
    """Measure the servers that are installed."""
    title = "A service, from the request to the first answered query"
    series = []
    if shutil.which("redis-server"):
        series.append(Series("Redis", _worker("redis"), at_most=12.0))
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
    figures, _ = bench.compare(series, size=min(bench.scale.size, 5))
    return Row("services", title, figures)
