"""Parsing of /proc/PID/mountinfo and /proc/PID/cgroup for the mounted cgroup hierarchies."""

from __future__ import annotations

import pytest

from pytest_sandbox.linux.cgroup.mounts import Mount, parse_mounts, parse_own

V1 = """\
25 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
26 25 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:10 - cgroup cgroup rw,cpu,cpuacct
27 25 0:30 /docker/ab /sys/fs/cgroup/memory ro,nosuid master:3 - cgroup cgroup rw,memory
28 25 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
29 25 0:32 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 cgroup2 rw,nsdelegate
"""


def test_parse_mounts():
    """Version, root, mount point and controllers are parsed, with escapes and optional fields."""
    assert (
        Mount(1, "/", "/sys/fs/cgroup/cpu,cpuacct", frozenset({"cpu", "cpuacct"}), writable=True),
        Mount(1, "/docker/ab", "/sys/fs/cgroup/memory", frozenset({"memory"}), writable=False),
        Mount(1, "/", "/sys/fs/cgroup/systemd", frozenset(), writable=True),
        Mount(2, "/", "/sys/fs/cgroup/uni fied", frozenset(), writable=True),
    ) == parse_mounts(V1.encode())


def test_paths_may_contain_any_byte_but_newline():
    """Paths that are not UTF-8 or contain a form feed are parsed."""
    odd = b"40 1 0:40 / /mnt/caf\xe9\x0c rw - tmpfs odd\x0c rw\n"
    hierarchy = b"41 1 0:41 /a\xe9 /cg\x0c rw - cgroup2 cgroup2 rw\n"
    assert (Mount(2, "/a\udce9", "/cg\x0c", frozenset(), writable=True),) == parse_mounts(
        odd + hierarchy
    )


def test_cgroup_names_may_contain_other_line_separators():
    """Only a newline ends a line of /proc/PID/cgroup."""
    assert {"": "/a\x0cb\u2028"} == parse_own("0::/a\x0cb\u2028\n")


def test_parse_own():
    """Each controller has its cgroup, v2 under the key ""; a path may contain colons."""
    text = "9:cpu,cpuacct:/user\n8:memory:/odd:name\n1:name=systemd:/init.scope\n0::/session\n"
    assert {
        "cpu": "/user",
        "cpuacct": "/user",
        "memory": "/odd:name",
        "name=systemd": "/init.scope",
        "": "/session",
    } == parse_own(text)


@pytest.mark.parametrize(
    ("root", "cgroup", "directory"),
    [
        ("/", "/", "/sys/fs/cgroup"),
        ("/", "/user.slice/a", "/sys/fs/cgroup/user.slice/a"),
        ("/docker/ab", "/docker/ab", "/sys/fs/cgroup"),
        ("/docker/ab", "/docker/ab/child", "/sys/fs/cgroup/child"),
        ("/docker/ab", "/docker/abc", None),
        ("/docker/ab", "/", None),
        ("/", "/../above", None),
    ],
)
def test_directory_of_a_cgroup(root, cgroup, directory):
    """A cgroup outside of the mounted root has no directory."""
    assert directory == Mount(2, root, "/sys/fs/cgroup", frozenset(), writable=True).directory(
        cgroup
    )
