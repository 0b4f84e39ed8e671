"""One measured process: ``python -m bench.worker OPERATION [ARGUMENT...]`` repeats an operation as
requested on its stdin.

Each operation is a context manager that yields a function, which does one round and returns its
time in milliseconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from pytest_sandbox import Container

    Round = Callable[[], float]

# The same limits as the floor's (bench/floor.c).
LIMITS: dict[str, Any] = {"memory": "256m", "cpus": 1.0, "pids_limit": 100}


def clocked(do: Callable[[], object]) -> float:
    """Call a function, and return its time in milliseconds."""
    start = time.perf_counter()
    do()
    return (time.perf_counter() - start) * 1e3


def limited(**settings: Any) -> Container:
    """Return a container with the limits of the benchmark."""
    from pytest_sandbox import Container

    return Container(**LIMITS, **settings)


def fill_heap(megabytes: int) -> list[bytes]:
    """Allocate small objects, as a real program does: the huge pages of one big block would make a
    fork cheap.
    """
    return [bytes(400) for _ in range(megabytes * 2400)]


def spawn_and_wait(argv: list[str]) -> None:
    """Run a program to its end. Raises :class:`RuntimeError` if it fails."""
    _, status = os.waitpid(os.posix_spawnp(argv[0], argv, os.environ), 0)
    if status:
        raise RuntimeError(f"{argv} ended with wait status {status}")


@contextmanager
def command(*argv: str) -> Iterator[Round]:
    """Run a program, from posix_spawn to its end."""
    yield partial(clocked, partial(spawn_and_wait, [*argv]))


@contextmanager
def fork(megabytes: str) -> Iterator[Round]:
    """Fork a process with a heap, whose child exits at once."""
    heap = fill_heap(int(megabytes))

    def once() -> None:
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)

    yield partial(clocked, once)
    del heap


@contextmanager
def sandbox(megabytes: str = "0") -> Iterator[Round]:
    """Create a container, run ``true`` in it, close it."""
    heap = fill_heap(int(megabytes))

    def once() -> None:
        with limited() as container:
            container.run(["true"], check=True)

    yield partial(clocked, once)
    del heap


@contextmanager
def networked() -> Iterator[Round]:
    """Do the same on a network with another container."""
    from pytest_sandbox import Network

    def once() -> None:
        with limited(network=net) as container:
            container.run(["true"], check=True)

    with Network() as net, limited(network=net, hostname="neighbour"):
        yield partial(clocked, once)


@contextmanager
def second_run() -> Iterator[Round]:
    """Call ``run(["true"])`` in a running container."""
    with limited() as container:
        yield partial(clocked, partial(container.run, ["true"], check=True))


def nothing() -> None:
    """Do nothing, as the function that ``call`` is measured with."""


@contextmanager
def call(megabytes: str) -> Iterator[Round]:
    """Call ``call(f)`` in a running container, from a process with a heap."""
    heap = fill_heap(int(megabytes))
    with limited() as container:
        yield partial(clocked, partial(container.call, nothing))
    del heap


@contextmanager
def close_after(files: str) -> Iterator[Round]:
    """Measure ``close()`` alone, after so many files were written.

    One more command before it warms the caches of the caller, which has waited for a second.
    """
    write = f"mkdir /tmp/many && cd /tmp/many && seq {files} | xargs touch"

    def once() -> float:
        from pytest_sandbox import Container

        container = Container(pids_limit=100)  # no memory limit: 100,000 inodes are charged
        container.start()
        container.run(["sh", "-c", write], check=True)
        container.run(["true"], check=True)
        return clocked(container.close)

    yield once


@contextmanager
def import_of(statement: str) -> Iterator[Round]:
    """Measure an import in a new interpreter, with bytecode files, as an installation has them."""
    code = (
        f"import time; start = time.perf_counter(); {statement}; print((time.perf_counter() - "
        "start) * 1e3)"
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def once() -> float:
        return float(
            subprocess.run(
                [sys.executable, "-c", code], env=env, check=True, stdout=subprocess.PIPE
            ).stdout
        )

    yield once


OPERATIONS = {
    operation.__name__: operation
    for operation in (command, fork, sandbox, networked, second_run, call, close_after, import_of)
}


def wait_and_compute(gap_ms: int, busy_ms: int) -> None:
    """Sleep, and then keep a CPU busy, before a round."""
    if gap_ms:
        time.sleep(gap_ms / 1e3)
    end = time.perf_counter() + busy_ms / 1e3
    while time.perf_counter() < end:
        pass


def repeat(operation: Callable[..., AbstractContextManager[Round]], *arguments: str) -> None:
    """Do as many rounds of an operation as each line of stdin requests."""
    with operation(*arguments) as once:
        for line in sys.stdin:
            count, gap_ms, busy_ms = map(int, line.split())
            times = []
            for _ in range(count):
                wait_and_compute(gap_ms, busy_ms)
                times.append(once())
            print(json.dumps(times), flush=True)


if __name__ == "__main__":
    repeat(OPERATIONS[sys.argv[1]], *sys.argv[2:])
