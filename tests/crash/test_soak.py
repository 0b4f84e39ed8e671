"""Thousands of containers one after another: nothing accumulates."""

from __future__ import annotations

import os
import threading

import pytest
from crash import leftovers

from pytest_sandbox import Container
from pytest_sandbox.linux import cgroup

pytestmark = pytest.mark.needs("root")


def resident(pid):
    """Return the resident memory of a process in kB."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:"))


def figures():
    """Return counts of what could accumulate, and the resident memory of the launcher in kB."""
    me, launcher = os.getpid(), leftovers.launcher_of(os.getpid())
    session = next(
        name for name in cgroup.find_hierarchy().sessions() if name.startswith(f"{me:x}-")
    )
    groups = [
        path
        for directory in cgroup.find_hierarchy().sessions()[session]
        for path in cgroup.walk(directory)
    ]
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        mounts = sum(1 for line in file if session in line)
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "descriptors of the launcher": len(os.listdir(f"/proc/{launcher}/fd")),
        "cgroups": len(groups),
        "processes": len(leftovers.processes(me)),
        "mounts": mounts,
    }, resident(launcher)


def await_figures(expected):
    """Wait until the figures are at most as expected, as some things are released in the
    background; return them.
    """
    deadline = 200
    found, memory = figures()
    while any(found[name] > most for name, most in expected.items()) and (deadline := deadline - 1):
        threading.Event().wait(0.05)
        found, memory = figures()
    return found, memory


def use(count):
    for number in range(count):
        with Container(memory="64m") as c:
            c.run(["true"], check=True)
            if number % 20 == 0:
                c.call(os.getpid)
                c.write_text("/tmp/x", "x")


#: Descriptors of one network namespace (launcher/networks.py). How many a session keeps for later
#: containers depends on how many containers, with the prewarmed one, existed at one time.
ONE_NETWORK = 6


def grown(count):
    use(20)
    before, memory = await_figures({})
    before["descriptors of the launcher"] += ONE_NETWORK
    use(count)
    after, memory_after = await_figures(before)
    return {
        name: (before[name], after[name]) for name in before if after[name] > before[name]
    }, memory_after - memory


def test_two_hundred_containers():
    """Containers that are closed leave no descriptor, process, cgroup or mount."""
    assert {} == grown(200)[0]


@pytest.mark.slow
def test_two_thousand_containers():
    """Nothing accumulates, and the launcher's memory grows by less than 1 MB."""
    more, kilobytes = grown(2000)
    assert {} == more
    assert kilobytes < 1000
