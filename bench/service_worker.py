"""One measured process for services: ``python -m bench.service_worker OPERATION [ARGUMENT...]``, as
bench/worker.py. A round is the time until a service is ready, that is, has answered a query.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bench import contestants
from bench.worker import clocked, repeat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from bench.worker import Round
    from pytest_sandbox.services import Running, Service

    Operation = Callable[..., AbstractContextManager[Round]]

ROWS = 200_000
#: Seconds until a server must have answered, and between two questions.
_PATIENCE, _INTERVAL = 60.0, 0.001


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


def free_port() -> int:
    """Return a port of loopback on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def redis_server(port: int) -> tuple[str, ...]:
    """Return the command of Redis without persistence."""
    options = ("--bind", "*", "--protected-mode", "no", "--save", "", "--dir", "/tmp")
    return ("redis-server", "--port", str(port), *options)


def wait_for_answer(port: int) -> None:
    """Send PING until Redis answers. Raises :class:`TimeoutError`."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(b"PING\r\n")
            if connection.recv(100).startswith(b"+PONG"):
                return
        time.sleep(_INTERVAL)
    raise TimeoutError(f"Redis has not answered within {_PATIENCE:g} seconds")


def answered(start: Callable[[int], tuple[str, ...]], remove: tuple[str, ...]) -> float:
    """Run ``start(port)``, which prints the id of a container; return the milliseconds until Redis
    has answered. Then run ``remove`` with the id.
    """
    port = free_port()
    ids = []

    def run() -> None:
        ids.append(subprocess.check_output(start(port), text=True).strip())
        wait_for_answer(port)

    try:
        return clocked(run)
    finally:
        subprocess.run([*remove, *ids], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def detached_redis() -> Iterator[Round]:
    """Start Redis with ``pytest-sandbox run -d``, with a published port."""
    ours = (sys.executable, "-m", "pytest_sandbox")

    def start(port: int) -> tuple[str, ...]:
        return (*ours, "run", "-d", "-p", f"127.0.0.1:{port}:{port}", "host", *redis_server(port))

    with tempfile.TemporaryDirectory() as home:
        os.environ["PYTEST_SANDBOX_HOME"] = home
        yield lambda: answered(start, (*ours, "rm", "-f"))


@contextmanager
def podman_redis() -> Iterator[Round]:
    """Start Redis with ``podman run -d``, in the host's network, which is the fastest for it."""
    program = contestants.on_path("podman") or "podman"
    with tempfile.TemporaryDirectory() as directory:
        contestants.write_rootfs(Path(directory))

        def start(port: int) -> tuple[str, ...]:
            flags = ("--detach", "--network=host")
            return contestants.podman_run(program, Path(directory), flags, redis_server(port))

        remove = (*contestants.podman_command(program), "rm", "--force", "--time=0")
        try:
            yield lambda: answered(start, remove)
        finally:
            contestants.remove_cgroups_of_peers()


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
    OPERATIONS: dict[str, Operation] = {
        operation.__name__: operation
        for operation in (redis, detached_redis, podman_redis, postgres)
    }
    repeat(OPERATIONS[sys.argv[1]], *sys.argv[2:])
