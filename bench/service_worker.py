"""One measured process for services: ``python -m bench.service_worker OPERATION [ARGUMENT...]``, as
bench/worker.py. A round is the time until a service is ready, that is, has answered a query.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench.worker import repeat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from bench.worker import Round
    from pytest_sandbox.services import Running, Service

    Operation = Callable[..., AbstractContextManager[Round]]

ROWS = 200_000


def started(service: Service) -> float:
    """Start a service, close it, and return the milliseconds of the start."""
    start = time.perf_counter()
    with service.start():
        return (time.perf_counter() - start) * 1e3


@contextmanager
def redis() -> Iterator[Round]:
    """Start Redis."""
    from pytest_sandbox.services import redis as recipe

    service = recipe()
    yield lambda: started(service)


def fill(db: Running) -> None:
    """Create a table of 200,000 rows."""
    statement = f"create table t as select g from generate_series(1, {ROWS}) g"
    command = ["psql", "-h", "127.0.0.1", "-U", "postgres", "-c", statement]
    db.container.run(command, check=True, capture_output=True)


@contextmanager
def postgres(ahead: str) -> Iterator[Round]:
    """Start a clone of PostgreSQL with 200,000 rows."""
    from pytest_sandbox.services import postgres as recipe

    with tempfile.TemporaryDirectory() as home:
        os.environ["PYTEST_SANDBOX_HOME"] = home
        service = recipe(setup=fill, ahead=int(ahead))
        try:
            yield lambda: started(service)
        finally:
            service.close()


if __name__ == "__main__":
    OPERATIONS: dict[str, Operation] = {"redis": redis, "postgres": postgres}
    repeat(OPERATIONS[sys.argv[1]], *sys.argv[2:])
