"""What the host of the tests can do, found by probing, never guessed from a version."""

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
    """Whether containers can be made here: by root, or by a user that may have user namespaces."""
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
    """The v2 directory of this process."""
    line = next(
        line
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if line.startswith("0::")
    )
    return CGROUPS / line.removeprefix("0::").strip("/")


def has_controller(name: str) -> bool:
    """Whether this process may make groups with limits of the controller *name* (v2: its own or a
    parent's directory was delegated).
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
    """Whether a systemd manager of this user answers."""
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
    """The disk that *directory* lies on, None where that is no block device of its own (tmpfs, an
    overlay) or a mapped one.
    """
    number = os.stat(directory).st_dev
    place = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    disk = place.parent if (place / "partition").exists() else place
    return f"/dev/{disk.name}" if Path(f"/dev/{disk.name}").is_block_device() else None


def has_bridges() -> bool:
    """Whether the library, which tries, finds that containers can be connected here."""
    from pytest_sandbox import host

    return host.find("bridge").found


def has_huge_pages() -> bool:
    """Whether the kernel gathers memory in huge pages when it is asked to."""
    with mmap.mmap(-1, 4 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[:] = b"x" * len(memory)
        try:
            memory.madvise(25)
        except OSError:
            return False
    return "[never]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()


def has_assembler(machine: str) -> bool:
    """Whether tools/make_machine_code.py can assemble the code of *machine* here."""
    from make_machine_code import tools

    return tools(machine) is not None


def has_mypy() -> bool:
    return find_spec("mypy") is not None


def has_pyright() -> bool:
    """Whether pyright runs here: its package downloads what it lacks, which an offline machine
    refuses.
    """
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
    # tools/vm's machine, in which a test may change the kernel's parameters.
    "throwaway": lambda: os.path.isdir("/run/vm") and socket.gethostname() == "vm",
    # Overlays are stacked two deep at the most: on a root that is one, a container in a container
    # finds no place for its own.
    "plain_root": lambda: (
        not any(
            line.split()[4] == "/" and " - overlay " in line
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
        )
    ),
    "podmans_policy": lambda: os.path.exists("/usr/share/containers/seccomp.json"),
    "apparmor": lambda: os.access("/sys/kernel/security/apparmor/.load", os.W_OK),
    "undelegated": lambda: has_unified_cgroup() and not has_limits(),
}


@cache
def has(capability: str) -> bool:
    """Whether this host has *capability*: a key of PROBES, or a program's name."""
    probe = PROBES.get(capability)
    return probe() if probe else has_program(capability)
