"""One measured process: ``python -m bench.worker OPERATION [ARGUMENT...]`` repeats an operation as
often as its stdin says.

Each operation is a context manager that prepares, and gives a function that does one round and
returns its milliseconds.
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

# What the floor sets, too.
LIMITS: dict[str, Any] = {"memory": "256m", "cpus": 1.0, "pids_limit": 100}


def clocked(do: Callable[[], object]) -> float:
    start = time.perf_counter()
    do()
    return (time.perf_counter() - start) * 1e3


def limited(**settings: Any) -> Container:
    from pytest_sandbox import Container

    return Container(**LIMITS, **settings)


def fill_heap(megabytes: int) -> list[bytes]:
    """Small objects, as a real program's heap has them: one big block would sit in huge pages,
    which fork copies for nothing.
    """
    return [bytes(400) for _ in range(megabytes * 2400)]


def spawn_and_wait(argv: list[str]) -> None:
    _, status = os.waitpid(os.posix_spawnp(argv[0], argv, os.environ), 0)
    if status:
        raise RuntimeError(f"{argv} ended with wait status {status}")


@contextmanager
def command(*argv: str) -> Iterator[Round]:
    """A program, from posix_spawn to its end."""
    yield partial(clocked, partial(spawn_and_wait, [*argv]))


@contextmanager
def fork(megabytes: str) -> Iterator[Round]:
    """A bare os.fork + exit of a process with a heap."""
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
    """The same on a network with a neighbour."""
    from pytest_sandbox import Network

    def once() -> None:
        with limited(network=net) as container:
            container.run(["true"], check=True)

    with Network() as net, limited(network=net, hostname="neighbour"):
        yield partial(clocked, once)


@contextmanager
def second_run() -> Iterator[Round]:
    """``run(["true"])`` in a living container."""
    with limited() as container:
        yield partial(clocked, partial(container.run, ["true"], check=True))


def nothing() -> None:
    """The callable that ``call`` is measured with."""


@contextmanager
def call(megabytes: str) -> Iterator[Round]:
    """``call(f)`` in a living container, from a process with a heap."""
    heap = fill_heap(int(megabytes))
    with limited() as container:
        yield partial(clocked, partial(container.call, nothing))
    del heap


@contextmanager
def close_after(files: str) -> Iterator[Round]:
    """``close()`` alone, after so many files were written and one more command: else the caller's
    caches, cold after a second of waiting, are measured.
    """
    write = f"mkdir /tmp/many && cd /tmp/many && seq {files} | xargs touch"

    def once() -> float:
        from pytest_sandbox import Container

        container = Container(pids_limit=100)  # no cap: 100,000 inodes are memory
        container.start()
        container.run(["sh", "-c", write], check=True)
        container.run(["true"], check=True)
        return clocked(container.close)

    yield once


@contextmanager
def import_of(statement: str) -> Iterator[Round]:
    """An import in a fresh interpreter, measured in there; of compiled files, as an installation
    has them, also where the caller's are not kept.
    """
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
    if gap_ms:
        time.sleep(gap_ms / 1e3)
    end = time.perf_counter() + busy_ms / 1e3
    while time.perf_counter() < end:
        pass


def repeat(operation: Callable[..., AbstractContextManager[Round]], *arguments: str) -> None:
    """Do an operation's rounds as often as stdin says."""
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
