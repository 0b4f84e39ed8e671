"""The capabilities of the host that runs the tests, found by probing."""

from __future__ import annotations

import mmap
import os
import shutil
import socket
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CGROUPS = Path("/sys/fs/cgroup")


def is_root() -> bool:
    return os.geteuid() == 0


def can_make_containers() -> bool:
    """Whether this user is root or can create user namespaces."""
    return (
        is_root()
        or subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "true"],
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )


def has_unified_cgroup() -> bool:
    return (CGROUPS / "cgroup.controllers").exists()


def own_cgroup() -> Path:
    """Return the v2 directory of this process."""
    line = next(
        line
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if line.startswith("0::")
    )
    return CGROUPS / line.removeprefix("0::").strip("/")


def has_controller(name: str) -> bool:
    """Whether this process can make cgroups with limits of a controller; with v2, in its own
    directory or its parent, if that is delegated.
    """
    if not has_unified_cgroup():
        return os.access(CGROUPS / name, os.W_OK) and (CGROUPS / name / "cgroup.procs").exists()
    own = own_cgroup()
    return any(
        os.access(directory / "cgroup.subtree_control", os.W_OK)
        and os.access(directory / "cgroup.procs", os.W_OK)
        and name in (directory / "cgroup.controllers").read_text().split()
        for directory in (own, own.parent)
    )


def has_limits() -> bool:
    return all(has_controller(name) for name in ("memory", "cpu", "pids"))


def has_systemd_user() -> bool:
    """Whether a systemd user manager answers."""
    manager = [
        "org.freedesktop.systemd1",
        "/org/freedesktop/systemd1",
        "org.freedesktop.systemd1.Manager",
    ]
    asked = ["busctl", "--user", "get-property", *manager, "Version"]
    return (
        has_program("busctl")
        and subprocess.run(asked, capture_output=True, check=False).returncode == 0
    )


def disk_of(directory: str) -> str | None:
    """Return the disk of a directory, or None if it is not on a block device (tmpfs, overlay) or on
    a mapped one.
    """
    number = os.stat(directory).st_dev
    place = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    disk = place.parent if (place / "partition").exists() else place
    return f"/dev/{disk.name}" if Path(f"/dev/{disk.name}").is_block_device() else None


def has_bridges() -> bool:
    """Whether the library can connect containers here."""
    from pytest_sandbox import host

    return host.find("bridge").found


def has_huge_pages() -> bool:
    """Whether madvise(2) with MADV_COLLAPSE works."""
    with mmap.mmap(-1, 4 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[:] = b"x" * len(memory)
        try:
            memory.madvise(25)
        except OSError:
            return False
    return "[never]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()


def has_assembler(machine: str) -> bool:
    """Whether tools/make_machine_code.py can assemble the code of a machine."""
    from make_machine_code import tools

    return tools(machine) is not None


def has_mypy() -> bool:
    return find_spec("mypy") is not None


def can_podman_start() -> bool:
    """Whether podman starts containers here."""
    from podman_peer import can_start_containers

    return can_start_containers()


def has_pyright() -> bool:
    """Whether pyright runs: its package downloads it on first use, which needs a network."""
    asked = [sys.executable, "-m", "pyright", "--version"]
    return (
        find_spec("pyright") is not None
        and subprocess.run(asked, capture_output=True, check=False).returncode == 0
    )


def has_program(name: str) -> bool:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is not None


PROBES: dict[str, Callable[[], bool]] = {
    "root": is_root,
    "containers": can_make_containers,
    "user": lambda: not is_root(),
    "cgroup_v1": lambda: not has_unified_cgroup(),
    "cgroup_v2": has_unified_cgroup,
    "memory": lambda: has_controller("memory"),
    "cpu": lambda: has_controller("cpu"),
    "cpuset": lambda: has_controller("cpuset"),
    "pids": lambda: has_controller("pids"),
    "disk": lambda: (
        disk_of("/var/tmp") is not None and (has_controller("io") or has_controller("blkio"))
    ),
    "pressure": lambda: has_unified_cgroup() and os.path.exists("/proc/pressure/cpu"),
    "loop": lambda: os.access("/dev/loop-control", os.W_OK) and has_program("mkfs.ext4"),
    "limits": has_limits,
    "bridge": has_bridges,
    "assembler_x86_64": lambda: has_assembler("x86_64"),
    "assembler_aarch64": lambda: has_assembler("aarch64"),
    "mypy": has_mypy,
    "pyright": has_pyright,
    "huge_pages": has_huge_pages,
    "systemd_user": has_systemd_user,
    # The machine of tools/vm, in which a test can change kernel parameters.
    "throwaway": lambda: os.path.isdir("/run/vm") and socket.gethostname() == "vm",
    # The kernel stacks at most two overlays (FILESYSTEM_MAX_STACK_DEPTH), so containers in
    # containers need a root that is not an overlay.
    "plain_root": lambda: (
        not any(
            line.split()[4] == "/" and " - overlay " in line
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
        )
    ),
    "podmans_policy": lambda: os.path.exists("/usr/share/containers/seccomp.json"),
    "podman_containers": can_podman_start,
    "apparmor": lambda: os.access("/sys/kernel/security/apparmor/.load", os.W_OK),
    "undelegated": lambda: has_unified_cgroup() and not has_limits(),
}


@cache
def has(capability: str) -> bool:
    """Whether this host has a capability: a key of PROBES, or the name of a program."""
    probe = PROBES.get(capability)
    return probe() if probe else has_program(capability)
