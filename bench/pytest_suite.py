"""Sessions of pytest on generated suites: their time, and the memory of all their processes."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.measure import descendants

__all__ = ["Session", "run", "write_suite"]

#: Seconds between two looks at the memory: each takes a few milliseconds for each process.
_INTERVAL = 0.25
_CONFTEST = """
import os

count = 0

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def note():
    with open("resident", "a") as file:
        file.write(f"{resident()}\\n")

def note_test():
    global count
    count += 1
    if count == 100:
        note()

def pytest_configure(config):
    # Between two tests; the hooks of pytest itself would mean one job.
    if config.getoption("--sandbox"):
        config.pluginmanager.register(Inside())
    elif not hasattr(config, "workerinput"):
        config.pluginmanager.register(Plain())

class Inside:
    def pytest_sandbox_outcome(self): note_test()

class Plain:
    def pytest_runtest_logfinish(self): note_test()

def pytest_sessionfinish():
    note()
"""


@dataclass(frozen=True)
class Session:
    """What a session took: seconds of wall and of CPU time, and bytes.

    ``memory``: the highest sum of the PSS of its processes that was seen (smaps_rollup, proc(5)).
    ``resident``: the resident memory of pytest's own process after 100 tests, and at the end.
    """

    seconds: float
    cpu_seconds: float
    memory: int
    resident: tuple[int, ...]


def write_suite(directory: Path, source: str, modules: int = 1) -> None:
    """Write a suite of some modules with the same source, and nothing of an earlier one."""
    for path in directory.iterdir():
        if path.is_file():
            path.unlink()
    (directory / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (directory / "conftest.py").write_text(_CONFTEST, encoding="utf-8")
    for number in range(modules):
        (directory / f"test_{number}.py").write_text(source, encoding="utf-8")


def run(directory: Path, *options: str, watch: bool = False) -> Session:
    """Run a suite without the plugins that are not named; ``watch`` measures the memory.

    Raises :class:`RuntimeError` unless all tests pass.
    """
    (directory / "resident").unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "sandbox"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    before, start = _cpu_seconds(), time.perf_counter()
    with (directory / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [*command, *options], cwd=directory, env=environment, stdout=output, stderr=output
        )
        memory = _watch(process) if watch else 0
        status = process.wait()
    took = time.perf_counter() - start
    if status:
        text = (directory / "output.txt").read_text(encoding="utf-8", errors="replace")
        raise RuntimeError(f"pytest {' '.join(options)} ended with {status}:\n{text[-2000:]}")
    with suppress(FileNotFoundError):
        lines = (directory / "resident").read_text(encoding="ascii").split()
        return Session(took, _cpu_seconds() - before, memory, tuple(map(int, lines)))
    return Session(took, _cpu_seconds() - before, memory, ())


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _watch(process: subprocess.Popen[bytes]) -> int:
    """Return the highest sum of the processes' PSS until the end, in bytes."""
    highest = 0
    while _goes_on(process):
        pids = [process.pid, *descendants(process.pid)]
        highest = max(highest, sum(map(_pss, pids)))
    return highest


def _goes_on(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_INTERVAL)
    except subprocess.TimeoutExpired:
        return True
    return False


def _pss(pid: int) -> int:
    """Return a process's share of the memory that it uses, in bytes; 0 if it has ended."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        line = next(one for one in text.splitlines() if one.startswith("Pss:"))
        return int(line.split()[1]) << 10
    return 0
