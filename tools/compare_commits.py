"""Compare the speed of two checkouts of this project: ``python tools/compare_commits.py OLD NEW``.

Each round runs every row in a new process of the old checkout and then of the new one, so that both
run under the same conditions. Printed are the median of each row and the ratios new / old of the
rounds. ``python -m bench`` measures more. With ``--services``, the rows are those of its row
"services".
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

# Run in a checkout: print milliseconds by row.
WORKER = """
import json, statistics, time
from pytest_sandbox import Container

def median(func, count):
    times = []
    for _ in range(count):
        start = time.perf_counter()
        func()
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times)

def create(run):
    with Container() as c:
        if run: c.run(["true"])

found = {}
with Container() as c:
    median(lambda: c.run(["true"]), 20)
    found["run"] = median(lambda: c.run(["true"]), 300)
    found["call"] = median(lambda: c.call(int), 80)
    found["read_text"] = median(lambda: c.read_text("/etc/passwd"), 300)
    found["diff"] = median(c.diff, 100)
median(lambda: create(True), 20)
found["create, run, close"] = median(lambda: create(True), 200)
found["create, close"] = median(lambda: create(False), 200)
print(json.dumps(found))
"""
#: As WORKER, with the services that are installed.
SERVICES = """
import json, shutil, statistics, time
from bench.service_worker import fill, started
from pytest_sandbox.services import postgres, redis

def median(service, gap):
    times = []
    for _ in range(20):
        time.sleep(gap)
        times.append(started(service))
    service.close()
    return statistics.median(times[2:])

found = {}
if shutil.which("redis-server"):
    found["Redis"] = median(redis(), 0.03)
if shutil.which("pg_ctlcluster"):
    found["a clone of PostgreSQL"] = median(postgres(setup=fill), 0.03)
    found["the same with ahead=1, after 100 ms"] = median(postgres(setup=fill, ahead=1), 0.1)
print(json.dumps(found))
"""
TESTS = 200
SUITE = f"import pytest\n@pytest.mark.parametrize('n', range({TESTS}))\ndef test(n): pass\n"
# Print the seconds of a session, without the start of Python and the import of pytest.
SESSION = """
import time, pytest
start = time.perf_counter()
plugins = ["-p", "pytest_sandbox.plugin", "-p", "no:cacheprovider"]
pytest.main(["-q", *plugins, "--sandbox", "test_it.py"])
print(time.perf_counter() - start)
"""


def measured(checkout: Path, directory: str, *, services: bool) -> dict[str, float]:
    """Return milliseconds by row for one checkout."""
    env = {
        **os.environ,
        "PYTHONPATH": str(checkout),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_SANDBOX_HOME": os.path.join(directory, "home"),
    }

    def printed(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            env=env,
            cwd=directory,
            capture_output=True,
            text=True,
        )
        return done.stdout.splitlines()[-1]

    rows: dict[str, float] = json.loads(printed(SERVICES if services else WORKER))
    if services:
        return rows
    rows["a test inside"] = float(printed(SESSION)) * 1000 / TESTS
    return rows


def main() -> int:
    """Measure both checkouts, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--services", action="store_true", help="measure services instead")
    given = parser.parse_args()
    rounds: list[list[dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "test_it.py").write_text(SUITE)
        checkouts = [one.resolve() for one in (given.old, given.new)]
        rounds += (
            [measured(one, directory, services=given.services) for one in checkouts]
            for _ in range(given.rounds)
        )
    print("| | old | new | ratio | of the rounds |\n|---|---|---|---|---|")
    for row in rounds[0][0]:
        old, new = (statistics.median(one[side][row] for one in rounds) for side in (0, 1))
        ratios = sorted(one[1][row] / one[0][row] for one in rounds)
        spread = f"{ratios[0]:.2f} - {ratios[-1]:.2f}"
        print(
            f"| {row} | {old:.2f} ms | {new:.2f} ms | {statistics.median(ratios):.2f} | {spread} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
