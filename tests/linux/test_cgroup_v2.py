"""Version 2: where sessions are put, who moves for them, and who is told what when they cannot
be.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time

import pytest

from pytest_sandbox.errors import UnsupportedError
from pytest_sandbox.linux import syscall
from pytest_sandbox.linux.cgroup import LEAF, Hierarchy, Mount, destroy, table
from pytest_sandbox.linux.cgroup.v2 import HierarchyV2
from pytest_sandbox.linux.cgroup_limits import CgroupLimits
from pytest_sandbox.settings import Settings

pytestmark = [pytest.mark.needs("cgroup_v2"), pytest.mark.vm]

#: Runs in a group of its own: opens two sessions, closes them, and says after each step where it is
#: and what it sees.
VISIT = """
import json, sys
from pytest_sandbox.linux.cgroup import Hierarchy, read, parse_own
from pytest_sandbox.linux.cgroup_limits import CgroupLimits
from pytest_sandbox.settings import Settings

def see():
    return parse_own(read("/proc/self/cgroup"))[""]

hierarchy = Hierarchy.find()
steps = [see()]
first, second = hierarchy.session(sys.argv[1] + "-1"), Hierarchy.find().session(sys.argv[1] + "-2")
steps.append(see())
group = second.create("one")
group.apply(CgroupLimits.of(Settings(memory=64 << 20, cpus=0.5, pids_limit=8)))
limit = group.stats().memory_limit
first.close()
steps.append(see())
second.close()
steps.append(see())
print(json.dumps([steps, hierarchy.base.directory, limit]))
"""


@pytest.fixture
def directory():
    """A group with all controllers, to be given to somebody."""
    base = Hierarchy.find().base
    made = f"{base.directory}/test-{os.getpid()}-{secrets.token_hex(3)}"
    os.mkdir(made)
    yield made
    destroy([made])


def join(directory: str) -> None:
    with open(f"{directory}/cgroup.procs", "w") as file:
        file.write("0")


def run_in(directory: str, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, preexec_fn=lambda: join(directory), capture_output=True, text=True, check=True
    )


def wait_for(path: str, name: str, seconds: float = 60) -> dict[str, int]:
    """A flat keyed file, once the figure of that name is not 0."""
    deadline = time.monotonic() + seconds
    while not (found := table(path))[name]:
        assert time.monotonic() < deadline, f"{name} does not come"
        time.sleep(0.01)
    return found


def words(path: str) -> list[str]:
    with open(path) as file:
        return file.read().split()


def visit(directory: str, *before: str) -> tuple[list[str], str, int]:
    steps, base, limit = json.loads(
        run_in(directory, *before, sys.executable, "-c", VISIT, os.path.basename(directory)).stdout
    )
    return steps, base, limit


@pytest.mark.needs("limits")
def test_a_delegated_group_makes_room_and_gives_it_back(directory):
    """In a scope that systemd delegated, processes go into a leaf while any session lives, and back
    after the last.
    """
    os.setxattr(directory, "user.delegate", b"1")
    steps, base, limit = visit(directory)
    name = "/" + os.path.relpath(directory, "/sys/fs/cgroup")
    assert [name, f"{name}/{LEAF}", f"{name}/{LEAF}", name] == steps
    assert (directory, 64 << 20) == (base, limit)
    assert (set(), False) == (
        set(words(f"{directory}/cgroup.subtree_control")),
        os.path.exists(f"{directory}/{LEAF}"),
    )


@pytest.mark.needs("root")
def test_the_root_of_a_cgroup_namespace_makes_room(directory):
    """A container that has cgroups of its own sees its group as the root: its processes make room
    there.
    """
    script = 'umount -l /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"'
    steps, base, limit = visit(
        directory, "unshare", "--cgroup", "--mount", "sh", "-c", script, "sh"
    )
    assert ["/", f"/{LEAF}", f"/{LEAF}", "/"] == steps
    assert ("/sys/fs/cgroup", 64 << 20) == (base, limit)


@pytest.mark.needs("limits")
def test_nobody_moves_where_a_parent_is_free(directory):
    """Where a group above holds no processes and obeys us, sessions stand beside our own group."""
    os.mkdir(f"{directory}/leaf")
    steps, base, _limit = visit(f"{directory}/leaf")
    assert 1 == len(set(steps))
    assert directory == base


@pytest.mark.needs("limits")
def test_a_group_takes_a_process_at_its_birth(directory):
    """CLONE_INTO_CGROUP puts a fork into the group without a move, which would wait for all of the
    machine.
    """
    session = Hierarchy.find().session(os.path.basename(directory))
    try:
        group = session.create("one")
        read, write = os.pipe()
        pid, pidfd = syscall.clone3(syscall.CLONE_INTO_CGROUP, cgroup=group.fd())
        if not pid:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        assert (pid,) == group.pids()
        os.close(write)
        os.waitpid(pid, 0)
        os.close(pidfd)
        os.close(read)
    finally:
        session.close()


@pytest.mark.needs("limits")
def test_memory_over_the_soft_limit_is_slowed_down(directory):
    """Over memory_high the kernel takes memory back and lets the process wait, and kills nobody."""
    with contextlib.closing(Hierarchy.find().session(os.path.basename(directory))) as session:
        group = session.create("one")
        group.apply(CgroupLimits.of(Settings(memory_high=16 << 20)))
        command = [sys.executable, "-S", "-c", "x = b'x' * (64 << 20)"]
        # one thread
        greedy = subprocess.Popen(command, preexec_fn=lambda: join(group.directory))  # noqa: PLW1509
        events = wait_for(f"{group.directory}/memory.events", "high")
        assert (True, 0) == (events["high"] > 0, events["oom_kill"])
        greedy.kill()
        greedy.wait()


@pytest.mark.needs("undelegated")
def test_a_user_without_a_group_is_given_the_command():
    """Without delegation a limit is refused with the one command that brings it; without limits all
    goes on.
    """
    hierarchy = Hierarchy.find()
    hierarchy.require(Settings())
    with pytest.raises(
        UnsupportedError, match=r"memory=.* systemd-run --user --scope -p Delegate=yes"
    ):
        hierarchy.require(Settings().replace(memory="64m"))


def test_a_read_only_mount_is_named():
    """In an outer container with read-only cgroups the remedy speaks of that container."""
    hierarchy = HierarchyV2(Mount(2, "/", "/sys/fs/cgroup", frozenset(), writable=False), "/")
    with pytest.raises(UnsupportedError, match=r"read-only here.*--privileged"):
        hierarchy.require(Settings().replace(memory="64m"))


def test_a_group_outside_of_the_mount_is_nobodys_base():
    """Where our group lies above what is mounted, nothing is made anywhere, and a limit is
    refused.
    """
    hierarchy = HierarchyV2(
        Mount(2, "/", "/sys/fs/cgroup", frozenset(), writable=True), "/../above"
    )
    assert (None, frozenset()) == (hierarchy.base, hierarchy.controllers)
    with pytest.raises(UnsupportedError):
        hierarchy.require(Settings().replace(cpus=1))
