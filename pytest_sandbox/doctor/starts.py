"""Every container that the doctor starts, in the order of the report."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_sandbox.container.container import Container
from pytest_sandbox.container.fork import fork_into
from pytest_sandbox.container.network import Network
from pytest_sandbox.doctor import stored
from pytest_sandbox.errors import SetupError, UnsupportedError
from pytest_sandbox.outcome import Exited

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Start", "starts"]

#: Seconds for what runs inside, which takes milliseconds.
_TIMEOUT = 10.0
_NOBODY = "65534"
_STORE = ("image store",)
#: What a directory needs to be accepted as a root file system.
_ROOT = ("bin", "etc", "usr")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One container: ``do`` starts it and raises what a test session would; ``probes`` are the
    names of the probes that may explain a failure, the likeliest first.
    """

    name: str
    area: str
    use: str
    do: Callable[[], None]
    needed: bool = False
    probes: tuple[str, ...] = ()


def starts() -> list[Start]:
    """Return all of them."""
    return [*_needed(), *_limits(), *_files(), *_network(), *_rights(), *_images()]


def run_test_body(**settings: Any) -> None:
    """Start a container, and fork into it, as for a test; raise :class:`SetupError` if the fork
    does not end as it should.
    """
    with Container(**settings) as container:
        child = fork_into(container.handle, container.settings.user)
        if child is None:
            os._exit(0)
        outcome = child.wait(_TIMEOUT)
    if outcome != Exited(0):
        raise SetupError("run a test body", str(outcome))


def _body(**settings: Any) -> Callable[[], None]:
    return lambda: run_test_body(**settings)


def _call() -> None:
    with Container() as container:
        container.call(os.getpid)


def _run() -> None:
    with Container() as container:
        command = [sys.executable, "-I", "-S", "-c", ""]
        done = container.run(command, capture_output=True, text=True, timeout=_TIMEOUT)
    if done.returncode:
        raise SetupError("run a command", done.stderr or f"exit status {done.returncode}")


def _needed() -> list[Start]:
    return [
        Start(
            name=name,
            area="containers",
            use=use,
            do=do,
            needed=True,
            probes=("user namespace", "overlay", "proc"),
        )
        for name, use, do in (
            ("test body", "tests in containers", _body()),
            ("call", "Container.call(): a function in a container", _call),
            ("run", "Container.run() and popen(): a command in a container", _run),
        )
    ]


def _limits() -> list[Start]:
    cpu = min(os.sched_getaffinity(0))
    return [
        Start(name=f"limit: {key}", area="limits", use=use, do=do, probes=("cgroup",))
        for key, use, do in (
            (
                "memory",
                "hard cap; a test that the kernel kills for it is reported as such",
                _body(memory="64m"),
            ),
            ("cpus", "CPU time per wall time", _body(cpus=0.5)),
            ("cpuset", "CPUs that may be used", _body(cpuset=str(cpu))),
            (
                "pids_limit",
                "processes and threads; a fork bomb ends with its test",
                _body(pids_limit=100),
            ),
            ("memory_swap", "memory plus swap", _body(memory="64m", memory_swap="64m")),
            ("memory_high", "memory over which it is slowed down", _body(memory_high="64m")),
            (
                "device rates",
                "device_read_bps and the like: how fast a disk is used",
                _run_with_rate,
            ),
        )
    ]


def _run_with_rate() -> None:
    run_test_body(device_read_bps={_disk(): "1g"})


def _disk() -> str:
    """Return a whole disk: the kernel takes no rate for a partition."""
    with os.scandir("/dev") as entries:
        found = [
            entry.path
            for entry in entries
            if not entry.name.startswith(("loop", "ram", "zram", "sr"))
            and stat.S_ISBLK(entry.stat(follow_symlinks=False).st_mode)
        ]
    if not found:
        raise UnsupportedError("a rate for a disk", "There is no disk in /dev.")
    return min(found, key=lambda path: (len(path), path))


def _files() -> list[Start]:
    return [
        Start(name=name, area="files", use=use, do=do, probes=probes)
        for name, use, do, probes in (
            ("disk", "a limited writable layer in memory", _body(disk="16m"), ("tmpfs",)),
            ('storage="disk"', "a writable layer on disk", _body(storage="disk"), _STORE),
            (
                'disk with storage="disk"',
                "a limited writable layer on disk",
                _body(storage="disk", disk="16m"),
                _STORE,
            ),
            ("shm_size", "size of /dev/shm", _body(shm_size="16m"), ("tmpfs",)),
            ("volumes", "host directories inside", _run_with_volume, ("detached mounts",)),
            ("read_only", "a root that cannot be written to", _body(read_only=True), ()),
        )
    ]


def _run_with_volume() -> None:
    with tempfile.TemporaryDirectory() as directory:
        run_test_body(volumes=[f"{directory}:/pytest-sandbox-volume"])


def _network() -> list[Start]:
    return [
        Start(name=name, area="network", use=use, do=do, probes=probes)
        for name, use, do, probes in (
            (
                'network="none"',
                "a network of its own",
                _body(network="none"),
                ("network namespace", "loopback"),
            ),
            ('network="host"', "the host's network", _body(network="host"), ()),
            (
                "bridge",
                "network=Network(): containers that reach each other",
                _run_with_network,
                ("bridge",),
            ),
            ("hostname", "a host name of its own", _body(hostname="doctor"), ("uts namespace",)),
        )
    ]


def _run_with_network() -> None:
    with Network() as network:
        run_test_body(network=network)


def _rights() -> list[Start]:
    return [
        Start(name=name, area="rights", use=use, do=do, probes=probes)
        for name, use, do, probes in (
            ("user", "a test body as another user", _body(user=_NOBODY), ("subordinate ids",)),
            ("cap_add", "more capabilities", _body(cap_add=["NET_ADMIN"]), ()),
            ("cap_drop", "fewer capabilities", _body(cap_drop=["ALL"]), ()),
            ("ulimits", "limits of setrlimit(2)", _body(ulimits={"nofile": 64}), ()),
            ("seccomp=unconfined", "security_opt", _body(security_opt=["seccomp=unconfined"]), ()),
            ("privileged", "all capabilities", _body(privileged=True), ()),
        )
    ]


def _images() -> list[Start]:
    return [
        Start(name=name, area="store", use=use, do=do, probes=probes)
        for name, use, do, probes in (
            ("image directory", 'image="DIRECTORY"', _run_on_directory, ()),
            (
                "image store",
                "pulled and loaded images",
                lambda: stored.run_on_image(run_test_body, deletes=False),
                _STORE,
            ),
            (
                "deletions in images",
                "images with a layer that deletes files of another",
                lambda: stored.run_on_image(run_test_body, deletes=True),
                _STORE,
            ),
        )
    ]


def _run_on_directory() -> None:
    with tempfile.TemporaryDirectory() as directory:
        for name in _ROOT:
            os.mkdir(os.path.join(directory, name))
        run_test_body(image=directory)
