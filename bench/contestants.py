"""What the library is compared with: the floor, and every installed peer that works here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.measure import Series, python

if TYPE_CHECKING:
    from collections.abc import Iterator

CGROUPS = Path("/sys/fs/cgroup")
CONTROLLERS = ("memory", "cpu", "pids")
# The parent of podman's cgroups, and the beginning of the ids of OCI containers, after which the
# runtimes name their cgroups.
PEERS = f"bench-peers-{os.getpid()}"
PODMAN = "podman run"
SBIN = ":/usr/local/sbin:/usr/sbin:/sbin"  # for runc; a user's PATH often lacks these


@dataclass(frozen=True)
class Peer:
    """Another program, its command that runs ``true``, and which part of our work it does.

    It gets ``slower`` times fewer rounds than the others.
    """

    name: str
    argv: tuple[str, ...]
    does: str
    slower: int = 1


def on_path(program: str) -> str | None:
    """Return the path of a program, or None."""
    return shutil.which(program, path=os.environ.get("PATH", "") + SBIN)


def cgroup_parents() -> list[Path]:
    """Return the directories in which the floor may make cgroups with limits: one for each v1
    controller, or a single v2 directory.

    Raises :class:`PermissionError` if no v2 directory is delegated to this process.
    """
    # Not the prefix of the library's own cgroups: its cleanup would remove them.
    name = f"bench-floor-{os.getpid()}"
    if not (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS / controller / name for controller in CONTROLLERS]
    own = next(
        line
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if line.startswith("0::")
    )
    here = CGROUPS / own.removeprefix("0::").strip("/")
    for directory in (here, here.parent):
        if set(CONTROLLERS) <= set((directory / "cgroup.subtree_control").read_text().split()):
            return [directory / name]
    raise PermissionError(
        "no cgroup v2 directory with memory, cpu and pids is delegated to this process"
    )


def enable_controllers(directory: Path) -> None:
    """Enable the controllers for the children of a v2 directory."""
    if (directory / "cgroup.controllers").exists():
        (directory / "cgroup.subtree_control").write_text(
            " ".join(f"+{controller}" for controller in CONTROLLERS)
        )


@contextmanager
def floor() -> Iterator[list[tuple[str, ...]]]:
    """Compile the floor and make its cgroups; yield the commands of two workers, for the row with
    two at once.
    """
    with ExitStack() as undo:
        scratch = Path(
            undo.enter_context(tempfile.TemporaryDirectory(prefix="pytest-sandbox-floor-"))
        )
        subprocess.run(
            ["cc", "-O2", "-o", scratch / "floor", Path(__file__).with_name("floor.c")], check=True
        )
        parents = cgroup_parents()
        for directory in parents:
            directory.mkdir()
            undo.callback(directory.rmdir)
            enable_controllers(directory)
        commands = []
        for name in ("one", "two"):
            (scratch / name).mkdir()
            commands.append((str(scratch / "floor"), str(scratch / name), *map(str, parents)))
        yield commands


def write_bundle(directory: Path, runtime: str) -> None:
    """Write a bundle for an OCI runtime that runs ``true`` with the host's /usr, read-only, and
    with the limits of the other peers.
    """
    subprocess.run([runtime, "spec"], cwd=directory, check=True)
    spec = json.loads((directory / "config.json").read_text())
    spec["process"] |= {"terminal": False, "args": ["/bin/true"]}
    spec["root"] = {"path": "rootfs", "readonly": True}
    spec["mounts"].append(
        {"destination": "/usr", "source": "/usr", "type": "bind", "options": ["rbind", "ro"]}
    )
    limits = {
        "memory": {"limit": 256 << 20},
        "pids": {"limit": 100},
        "cpu": {"quota": 100_000, "period": 100_000},
    }
    spec["linux"]["resources"] = spec["linux"].get("resources", {}) | limits
    (directory / "config.json").write_text(json.dumps(spec))
    write_rootfs(directory / "rootfs")


def write_rootfs(directory: Path) -> None:
    """Make the mount points and links of a root file system that has the host's /usr."""
    for name in ("usr", "proc", "dev", "sys", "tmp"):
        (directory / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        (directory / name).symlink_to(f"usr/{name}")


def oci_runtime(name: str, program: str, directory: Path) -> Peer:
    """Return an OCI runtime as a peer, with a bundle below ``directory``."""
    bundle = directory / name
    bundle.mkdir()
    write_bundle(bundle, program)
    run = (program, "run", "--bundle", str(bundle), f"{PEERS}-{name}")
    return Peer(name, run, "namespaces, limits, masks; no overlay", slower=3)


def podman(program: str, directory: Path) -> Peer:
    """Return podman as a peer, with a root file system below ``directory``."""
    write_rootfs(directory / "podman")
    flags = ("--rm", "--network=none", "--memory=256m", "--cpus=1", "--pids-limit=100")
    argv = podman_run(program, directory / "podman", flags, ("true",))
    return Peer(PODMAN, argv, "all but the overlay", slower=10)


def podman_command(program: str) -> tuple[str, ...]:
    """Return podman with the options that it needs here.

    runc, because crun before 1.9 refuses hosts with both cgroup versions.
    """
    runtime = ("--runtime=runc",) if on_path("runc") else ()
    return (program, *runtime, "--cgroup-manager=cgroupfs")


def podman_run(
    program: str, rootfs: Path, flags: tuple[str, ...], command: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the command line of ``podman run`` with the host's /usr, read-only.

    podman's own limits of descriptors and processes exceed the hard limits of many machines, which
    only CAP_SYS_RESOURCE allows (setrlimit(2)).
    """
    limits = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
    given = (f"--cgroup-parent=/{PEERS}", *limits, "--volume=/usr:/usr:ro", *flags)
    return (*podman_command(program), "run", *given, "--rootfs", str(rootfs), *command)


def installed(directory: Path) -> Iterator[Peer]:
    """Yield every peer of this machine, and write the files that it needs below ``directory``."""
    if program := on_path("unshare"):
        flags = (
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--cgroup",
            "--fork",
            "--mount-proc",
        )
        yield Peer(
            "unshare", (program, *flags, "true"), "namespaces; no overlay, no limits, no loopback"
        )
    if program := on_path("bwrap"):
        flags = ("--unshare-all", "--bind", "/", "/", "--proc", "/proc", "--dev", "/dev")
        yield Peer("bubblewrap", (program, *flags, "true"), "namespaces; no overlay, no limits")
    if program := on_path("crun"):
        yield oci_runtime("crun", program, directory)
    if program := on_path("runc"):
        yield oci_runtime("runc", program, directory)
    if program := on_path("podman"):
        yield podman(program, directory)
    if program := on_path("docker"):
        argv = (
            program,
            "run",
            "--rm",
            "--network=none",
            "--memory=256m",
            "--cpus=1",
            "--pids-limit=100",
            "busybox",
            "true",
        )
        yield Peer("docker run", argv, "all, and an image", slower=10)


def without_hybrid_cgroups(argv: tuple[str, ...]) -> tuple[str, ...]:
    """Return the command in a mount namespace without the v2 directory: crun before 1.9 refuses
    hosts with both cgroup versions.
    """
    hide = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"'
    return ("unshare", "--mount", "sh", "-c", hide, "sh", *argv)


def why_not(argv: tuple[str, ...]) -> str:
    """Run a command, and return the first line of its error message if it fails, else nothing."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    return "" if done.returncode == 0 else (said[0] if said else f"exit status {done.returncode}")


def remove_cgroups_of_peers() -> None:
    """Remove the parents of its cgroups, which podman leaves in each hierarchy, and the cgroups of
    runtimes that were killed.

    Raises OSError if a process in one does not exit within 10 seconds: conmon, podman's parent of a
    container, exits after ``podman rm``.
    """
    deadline = time.monotonic() + 10
    for parent in (*CGROUPS.glob(f"{PEERS}*"), *CGROUPS.glob(f"*/{PEERS}*")):
        for directory, _, _ in os.walk(parent, topdown=False):
            remove_cgroup(Path(directory), deadline)


def remove_cgroup(directory: Path, deadline: float) -> None:
    """Remove a cgroup as soon as it has no processes. Raises OSError after the deadline."""
    while True:
        try:
            return directory.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@contextmanager
def peers() -> Iterator[tuple[list[Series], list[str]]]:
    """Yield the peers that work here, as series, and a line for each one that fails."""
    with tempfile.TemporaryDirectory(prefix="pytest-sandbox-peers-") as directory:
        working, failing = [], []
        for peer in installed(Path(directory)):
            worker = python("command", *peer.argv)
            reason = why_not(peer.argv)
            if reason and peer.name == "crun" and not why_not(without_hybrid_cgroups(peer.argv)):
                reason, worker = "", without_hybrid_cgroups(worker)
            if reason:
                failing.append(f"{peer.name} is installed, but cannot run here: {reason}")
            else:
                working.append(Series(f"{peer.name} ({peer.does})", worker, slower=peer.slower))
        try:
            yield working, failing
        finally:
            remove_cgroups_of_peers()
