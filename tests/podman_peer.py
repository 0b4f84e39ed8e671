"""Debian's podman with a store of its own, and how its output is compared with ours."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from terminals import wait_for

__all__ = ["Podman", "can_start_containers", "normalized"]

#: podman asks for limits of 1048576 descriptors and processes. Without CAP_SYS_RESOURCE, which many
#: machines of CI lack, no process can exceed its hard limits (setrlimit(2)), and each start fails
#: with EPERM. runc, because crun before 1.9 refuses hosts with both cgroup versions. Locks in
#: files, because several podmans would share those in memory. No network, as our default.
_CONFIGURATION = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
netns = "none"

[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
"""
_CGROUPS = Path("/sys/fs/cgroup")


class Podman:
    """Run podman with a store of its own, which :meth:`close` removes, and its containers."""

    def __init__(self) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="podman-"))  # podman accepts no long path
        (self.place / "containers.conf").write_text(_CONFIGURATION)
        self._cgroup = f"tests-{self.place.name}"
        self._environment = {
            **os.environ,
            "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin",  # for runc
            "CONTAINERS_CONF": str(self.place / "containers.conf"),
        }
        self._options = [
            *("--root", self.place / "root", "--runroot", self.place / "run"),
            *("--tmpdir", self.place / "tmp", "--storage-driver", "vfs"),
        ]

    def __call__(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run a command line, and capture its output."""
        if args[0] == "run":
            args = ("run", f"--cgroup-parent=/{self._cgroup}", *args[1:])
        return subprocess.run(
            ["podman", *self._options, *args],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )

    def remove_containers(self) -> None:
        """Kill and remove all containers of this store."""
        self("rm", "--force", "--time=0", "--all")

    def close(self) -> None:
        """Remove the containers, the store, and the cgroups that podman leaves."""
        self.remove_containers()
        wait_for(lambda: not self._cgroups_left())
        shutil.rmtree(self.place, ignore_errors=True)

    def _cgroups_left(self) -> list[Path]:
        """Remove the cgroups without processes, and return the others: conmon, podman's parent of
        a container, exits after `rm`.
        """
        parents = [_CGROUPS / self._cgroup, *_CGROUPS.glob(f"*/{self._cgroup}")]
        for parent in parents:
            for directory, _, _ in os.walk(parent, topdown=False):
                with suppress(OSError):
                    os.rmdir(directory)
        return [parent for parent in parents if parent.exists()]


@cache
def can_start_containers() -> bool:
    """Whether podman is installed and starts a container here."""
    busybox = shutil.which("busybox")
    if os.geteuid() or not busybox or not shutil.which("podman"):
        return False
    podman = Podman()
    try:
        (podman.place / "rootfs").mkdir()
        shutil.copy2(busybox, podman.place / "rootfs/busybox")
        command = ("--rootfs", str(podman.place / "rootfs"), "/busybox", "true")
        return podman("run", "--rm", *command).returncode == 0
    finally:
        podman.close()


def normalized(text: str) -> list[str]:
    """Return the lines of an output, sorted, without what must differ."""
    text = text.replace("localhost/", "").replace("docker.io/library/", "").replace("…", "...")
    text = re.sub(r"\b(sha256:)?[0-9a-f]{12,64}\b|\b[0-9a-f]+-[0-9a-f]{8}-\d+\b", "ID", text)
    text = re.sub(r"(\d+|About an?|Less than a) (second|minute|hour|day|week|month)s?", "AGE", text)
    text = re.sub(r"\d+(\.\d+)? ?[kMG]?B\b", "SIZE", text)
    return sorted(" ".join(line.split()) for line in text.splitlines())
