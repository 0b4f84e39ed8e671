"""Cgroup v2: where sessions are created, which processes are moved, and the errors."""

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
from pytest_sandbox.linux.cgroup import Mount, destroy, find_hierarchy
from pytest_sandbox.linux.cgroup.interface_files import read_flat_keyed
from pytest_sandbox.linux.cgroup.limits import CgroupLimits
from pytest_sandbox.linux.cgroup.v2 import HierarchyV2
from pytest_sandbox.linux.cgroup.v2_parent import LEAF
from pytest_sandbox.settings.settings import Settings

pytestmark = [pytest.mark.needs("cgroup_v2"), pytest.mark.vm]

#: Creates two sessions, closes them, and prints its own cgroup after each step.
TWO_SESSIONS = """
import json, sys
from pytest_sandbox.linux.cgroup import find_hierarchy, parse_own, read
from pytest_sandbox.linux.cgroup.limits import CgroupLimits
from pytest_sandbox.settings.settings import Settings

def own_cgroup():
    return parse_own(read("/proc/self/cgroup"))[""]

hierarchy = find_hierarchy()
steps = [own_cgroup()]
first = hierarchy.session(sys.argv[1] + "-1")
second = find_hierarchy().session(sys.argv[1] + "-2")
steps.append(own_cgroup())
cgroup = second.create("one")
cgroup.apply(CgroupLimits.of(Settings(memory=64 << 20, cpus=0.5, pids_limit=8)))
limit = cgroup.stats().memory_limit
first.close()
steps.append(own_cgroup())
second.close()
steps.append(own_cgroup())
print(json.dumps([steps, hierarchy.parent.directory, limit]))
"""


@pytest.fixture
def directory():
    """A cgroup with all controllers."""
    parent = find_hierarchy().parent
    made = f"{parent.directory}/test-{os.getpid()}-{secrets.token_hex(3)}"
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
    """Return a flat keyed file once the value of the key ``name`` is not 0."""
    deadline = time.monotonic() + seconds
    while not (found := read_flat_keyed(path))[name]:
        assert time.monotonic() < deadline, f"{name} is still 0"
        time.sleep(0.01)
    return found


def words(path: str) -> list[str]:
    with open(path) as file:
        return file.read().split()


def create_two_sessions(directory: str, *before: str) -> tuple[list[str], str, int]:
    steps, parent, limit = json.loads(
        run_in(
            directory, *before, sys.executable, "-c", TWO_SESSIONS, os.path.basename(directory)
        ).stdout
    )
    return steps, parent, limit


@pytest.mark.needs("limits")
def test_processes_of_a_delegated_cgroup_are_moved_to_a_leaf(directory):
    """They are in the leaf while a session exists, and are moved back after the last one."""
    os.setxattr(directory, "user.delegate", b"1")
    steps, parent, limit = create_two_sessions(directory)
    name = "/" + os.path.relpath(directory, "/sys/fs/cgroup")
    assert [name, f"{name}/{LEAF}", f"{name}/{LEAF}", name] == steps
    assert (directory, 64 << 20) == (parent, limit)
    assert (set(), False) == (
        set(words(f"{directory}/cgroup.subtree_control")),
        os.path.exists(f"{directory}/{LEAF}"),
    )


@pytest.mark.needs("root")
def test_processes_of_a_namespace_root_are_moved_to_a_leaf(directory):
    """In a container with its own cgroup namespace, the root's processes are moved."""
    script = 'umount -l /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"'
    steps, parent, limit = create_two_sessions(
        directory, "unshare", "--cgroup", "--mount", "sh", "-c", script, "sh"
    )
    assert ["/", f"/{LEAF}", f"/{LEAF}", "/"] == steps
    assert ("/sys/fs/cgroup", 64 << 20) == (parent, limit)


@pytest.mark.needs("limits")
def test_no_process_is_moved_if_an_ancestor_is_empty(directory):
    """If a writable ancestor has no processes, sessions are created there."""
    os.mkdir(f"{directory}/leaf")
    steps, parent, _limit = create_two_sessions(f"{directory}/leaf")
    assert 1 == len(set(steps))
    assert directory == parent


@pytest.mark.needs("limits")
def test_clone_into_cgroup(directory):
    """CLONE_INTO_CGROUP starts a child in the cgroup, without the global lock of a move."""
    session = find_hierarchy().session(os.path.basename(directory))
    try:
        cgroup = session.create("one")
        read, write = os.pipe()
        pid, pidfd = syscall.clone3(syscall.CLONE_INTO_CGROUP, cgroup=cgroup.fd())
        if not pid:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        assert (pid,) == cgroup.pids()
        os.close(write)
        os.waitpid(pid, 0)
        os.close(pidfd)
        os.close(read)
    finally:
        session.close()


@pytest.mark.needs("limits")
def test_memory_high(directory):
    """Over memory_high the kernel reclaims memory and delays the process; nothing is killed."""
    with contextlib.closing(find_hierarchy().session(os.path.basename(directory))) as session:
        cgroup = session.create("one")
        cgroup.apply(CgroupLimits.of(Settings(memory_high=16 << 20)))
        command = [sys.executable, "-S", "-c", "x = b'x' * (64 << 20)"]
        greedy = subprocess.Popen(
            command,
            preexec_fn=lambda: join(cgroup.directory),  # noqa: PLW1509 - one thread
        )
        events = wait_for(f"{cgroup.directory}/memory.events", "high")
        assert (True, 0) == (events["high"] > 0, events["oom_kill"])
        greedy.kill()
        greedy.wait()


@pytest.mark.needs("undelegated")
def test_without_delegation_the_error_names_systemd_run():
    """Without delegation a limit is rejected; the error has the command that delegates one."""
    hierarchy = find_hierarchy()
    hierarchy.require(Settings())
    with pytest.raises(
        UnsupportedError, match=r"memory=.* systemd-run --user --scope -p Delegate=yes"
    ):
        hierarchy.require(Settings().replace(memory="64m"))


def test_a_read_only_mount():
    """In an outer container with read-only cgroups the remedy is about that container."""
    hierarchy = HierarchyV2(Mount(2, "/", "/sys/fs/cgroup", frozenset(), writable=False), "/")
    with pytest.raises(UnsupportedError, match=r"read-only here.*--privileged"):
        hierarchy.require(Settings().replace(memory="64m"))


def test_no_parent_if_the_own_cgroup_is_not_mounted():
    """If the process's own cgroup is above the mounted one, limits are rejected."""
    hierarchy = HierarchyV2(
        Mount(2, "/", "/sys/fs/cgroup", frozenset(), writable=True), "/../above"
    )
    assert (None, frozenset()) == (hierarchy.parent, hierarchy.controllers)
    with pytest.raises(UnsupportedError):
        hierarchy.require(Settings().replace(cpus=1))
