"""Run the tests marked ``vm`` and the sample project on cgroup v2, as root and as a user.

Each way runs in its own machine, two at a time. Tests that need more than a way's host has are
deselected with ``--host-has``; a skip is a failure (conftest.py).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
#: The least number of tests of a way with limits: without the mark ``vm`` the lane would succeed
#: without tests.
AT_LEAST = 120
_SECONDS = 700
_ALWAYS = "containers,bridge,cgroup_v2,unshare,setpriv,busybox,throwaway"
_SAMPLE = "sample_project/tests"
#: The kernel of the machine is too old for an unprivileged user's layer of a limited size in memory
#: (Linux 6.6).
_SKIP = "-o sandbox_unsupported=skip"
#: This test sets a memory limit itself, which is an error on a host without limits. The path is
#: relative to the sample project.
_OVER_MEMORY = "tests/test_limits.py::test_a_test_over_its_memory_fails_and_the_next_one_runs"
_LIMITS = "limits,memory,cpu,pids,disk"


@dataclass(frozen=True)
class Way:
    """One kind of host: the options of ``tools/vm``, and what tests may need there."""

    name: str
    machine: tuple[str, ...]
    has: str
    sample: str = ""
    tests: str = "tests"


WAYS = (
    Way("root", (), f"{_ALWAYS},root,{_LIMITS},podman,podman_containers", _SAMPLE),
    Way("user", ("--user",), f"{_ALWAYS},user,{_LIMITS}", f"{_SAMPLE} {_SKIP}"),
    Way(
        "user-beside-systemd",
        ("--systemd",),
        f"{_ALWAYS},systemd_user",
        tests="tests/linux/test_systemd.py",
    ),
    # Without a delegated cgroup, limits cannot be enforced.
    Way(
        "user-without-cgroups",
        ("--user", "--no-delegate"),
        f"{_ALWAYS},user,undelegated",
        f"{_SAMPLE} {_SKIP} -o sandbox_memory= -o sandbox_pids_limit= --deselect {_OVER_MEMORY}",
    ),
)


def command(way: Way) -> str:
    """Return the shell command for the machine."""
    pytest = f"{sys.executable} -m pytest -q -p no:cacheprovider -p no:randomly"
    chosen = f"{pytest} -m 'vm and not slow' --host-has={way.has} --timeout=120 {way.tests}"
    return f"{chosen}; first=$?; {pytest} {way.sample} && exit $first" if way.sample else chosen


def run(way: Way) -> tuple[Way, int, str, float]:
    """Run one way, and return it with its exit status, its output and its seconds."""
    started = time.monotonic()
    variables = [
        "--env",
        "PYTHONDONTWRITEBYTECODE=1",
        "--env",
        "HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis",
    ]
    argv = [
        str(PROJECT / "tools/vm"),
        *way.machine,
        "--timeout",
        str(_SECONDS),
        "--mem",
        "3G",
        *variables,
        "--",
        "sh",
        "-c",
        command(way),
    ]
    done = subprocess.run(
        argv, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return way, done.returncode, done.stdout, time.monotonic() - started


def passed(output: str) -> int:
    """Return how many of the marked tests passed, by the first summary line of pytest."""
    found = re.search(r"(\d+) passed", output)
    return int(found[1]) if found else 0


def verdict(way: Way, status: int, output: str) -> str:
    """Return an error message, or an empty string for success."""
    if status:
        return f"status {status}"
    if "limits" in way.has and passed(output) < AT_LEAST:
        return f"only {passed(output)} tests are marked vm; at least {AT_LEAST} should be"
    return ""


def main() -> int:
    """Run the chosen ways, or all, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="tools/vm_lane",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "ways",
        nargs="*",
        metavar="WAY",
        choices=[[], *(way.name for way in WAYS)],
        help=", ".join(way.name for way in WAYS),
    )
    parser.add_argument(
        "--verbose", action="store_true", help="also show the output of ways that succeed"
    )
    options = parser.parse_args()
    chosen = [way for way in WAYS if not options.ways or way.name in options.ways]
    failed = False
    with ThreadPoolExecutor(2) as pool:
        for way, status, output, seconds in pool.map(run, chosen):
            wrong = verdict(way, status, output)
            failed = failed or bool(wrong)
            if wrong or options.verbose:
                print(output)
            print(
                f"{way.name}: {wrong or 'ok'}, {passed(output)} tests and the sample project, "
                f"{seconds:.0f} s",
                flush=True,
            )
    return int(failed)
