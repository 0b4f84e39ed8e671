"""What a container has at /sys/fs/cgroup, and the programs that read their limits there."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from pytest_sandbox import Container
from pytest_sandbox.linux.cgroup.view import ShownCgroup, make_points

pytestmark = [pytest.mark.needs("containers", "limits"), pytest.mark.vm]

LIMIT = 256 << 20
UNIFIED = Path("/sys/fs/cgroup/cgroup.controllers").exists()
MEMORY = "/sys/fs/cgroup/memory.max" if UNIFIED else "/sys/fs/cgroup/memory/memory.limit_in_bytes"
SECONDS = 120

ALLOCATE = """
import java.util.*;
public class Allocate {
    public static void main(String[] arguments) {
        List<byte[]> held = new ArrayList<>();
        try {
            while (true) held.add(new byte[1 << 20]);
        } catch (OutOfMemoryError error) {
            held = null;
            System.out.println("caught");
        }
    }
}
"""


def output(container, *command, **keywords):
    done = container.run(
        command, capture_output=True, text=True, check=True, timeout=SECONDS, **keywords
    )
    return done.stdout


@pytest.fixture(scope="module")
def limited():
    """Yield a container with 256 MiB and one CPU."""
    with Container(memory=LIMIT, cpus=1) as container:
        yield container


def test_the_limits_can_be_read_inside(limited):
    """The files of the container's own cgroup are at the usual paths."""
    quota = "cpu.max" if UNIFIED else "cpu/cpu.cfs_quota_us"
    assert str(LIMIT) == limited.read_text(MEMORY).strip()
    assert "100000" == limited.read_text(f"/sys/fs/cgroup/{quota}").split()[0]


def test_containers_do_not_see_each_other(limited):
    """No directory below shows another container of the session, nor the host's cgroups."""
    with Container() as other:
        script = "find -L /sys/fs/cgroup -type d -mindepth 2 | wc -l"
        assert ["0\n", "0\n"] == [output(one, "sh", "-c", script) for one in (limited, other)]
        assert str(LIMIT) != other.read_text(MEMORY).strip()


def test_the_cgroup_is_the_root_of_its_namespace(limited):
    """/proc/self/mountinfo and /proc/self/cgroup agree about where the limits are."""
    point = "/sys/fs/cgroup" if UNIFIED else "/sys/fs/cgroup/memory"
    mounts = output(limited, "cat", "/proc/self/mountinfo")
    lines = [line.split() for line in mounts.splitlines()]
    ((root, options),) = [(line[3], line[5]) for line in lines if line[4] == point]
    own = output(limited, "cat", "/proc/self/cgroup")
    assert ("/", {"ro", "nosuid", "nodev", "noexec"}) == (root, set(options.split(",")[:4]))
    assert re.search(r"^\d+:(memory)?:/$", own, re.MULTILINE)


@pytest.mark.parametrize("settings", [{}, {"privileged": True}, {"network": "host"}])
def test_it_is_read_only(settings):
    """Every kind of container has its cgroup read-only."""
    with Container(memory=LIMIT, **settings) as container:
        done = container.run(["sh", "-c", f"echo 1 > {MEMORY}"], capture_output=True, text=True)
    assert (2, True) == (done.returncode, "Read-only" in done.stderr)


@pytest.mark.needs("cpuset")
def test_a_cpuset_is_shown():
    """A container with cpuset= shows its own."""
    name = "cpuset.cpus" if UNIFIED else "cpuset/cpuset.cpus"
    with Container(cpuset="0") as container:
        assert "0\n" == container.read_text(f"/sys/fs/cgroup/{name}")


@pytest.mark.needs("java")
@pytest.mark.parametrize("user", [None, "65534:65534"])
def test_the_jvm_sees_its_limits(user):
    """The JVM takes a part of the container's memory as its heap, and the CPUs from the quota."""
    with Container(memory=LIMIT, cpus=1, user=user) as container:
        command = ["java", "-XX:+PrintFlagsFinal", "-XshowSettings:system", "-version"]
        done = container.run(command, capture_output=True, text=True, timeout=SECONDS, cwd="/tmp")
    heap = re.search(r"MaxHeapSize\s+= (\d+)", done.stdout)
    assert 0 < int(heap[1]) <= LIMIT
    assert "Effective CPU Count: 1\n" in done.stderr
    assert "Memory Limit: 256.00M\n" in done.stderr


@pytest.mark.needs("javac")
def test_the_jvm_throws_before_the_kernel_kills(tmp_path):
    """A Java program that allocates without end gets OutOfMemoryError."""
    source = tmp_path / "Allocate.java"
    source.write_text(ALLOCATE)
    with Container(memory="512m") as container:
        assert "caught\n" == output(container, "java", str(source))
        assert 0 == container.stats().oom_kills


@pytest.mark.needs("node")
def test_node_sees_its_limit(limited):
    """process.constrainedMemory() is the container's limit."""
    script = "console.log(process.constrainedMemory())"
    assert LIMIT == int(output(limited, "node", "-e", script))


def test_joblib_sees_its_limit(limited):
    """loky, with which joblib counts CPUs, finds the quota."""
    pytest.importorskip("loky")
    script = "import json, loky; print(json.dumps(loky.cpu_count()))"
    assert 1 == json.loads(output(limited, sys.executable, "-c", script))


@pytest.mark.needs("cgroup_v1", "root")
def test_controllers_that_are_mounted_together_are_linked(tmp_path):
    """Each controller of a mount such as cpu,cpuacct has a link to it, as on the host."""
    shown = [ShownCgroup("/x", "cpu,cpuacct", ("cpu", "cpuacct")), ShownCgroup("/y", "memory")]
    for _ in range(2):
        make_points(str(tmp_path / "points"), shown)
    found = {path.name: path.is_symlink() for path in (tmp_path / "points").iterdir()}
    assert {"cpu,cpuacct": False, "memory": False, "cpu": True, "cpuacct": True} == found


@pytest.mark.needs("cgroup_v1", "root")
def test_a_container_in_a_container_finds_no_limits_to_set():
    """Inside, the cgroups are found and cannot be used, which requests for limits say."""
    script = (
        "from pytest_sandbox.linux.cgroup.find import find_hierarchy\n"
        "print(find_hierarchy().remedy('memory'))"
    )
    with Container(privileged=True) as container:
        assert "read-only here" in output(container, sys.executable, "-c", script)
