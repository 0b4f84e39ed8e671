"""The section "hint" of a failed report: why a test that passes without a container may fail in
one, and what to do.

The test process calls :func:`symptoms` for the exception of a failed phase: errors that isolation
often causes. results.py calls :func:`describe` in the parent, which knows the container's settings
and what the pytest process listens on.
"""

from __future__ import annotations

import errno
import os
import queue
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from pytest_sandbox.container.files import open_inside
from pytest_sandbox.errors import SandboxError
from pytest_sandbox.plugin import missing_threads, outside_processes, refused, scopes
from pytest_sandbox.printable import TEXT, printable
from pytest_sandbox.settings.destinations import is_limited
from pytest_sandbox.units import mib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

    from pytest_sandbox.container.container import Container
    from pytest_sandbox.container.diff import Changes
    from pytest_sandbox.outcome import Stats

__all__ = ["Symptom", "describe", "remember_created_files", "symptoms"]

#: Links of a chain of exceptions that are followed.
_MAX_DEPTH = 20
#: Errors that only rootless containers cause.
_ROOTLESS_ERRORS = {errno.EXDEV: "moved", errno.EOVERFLOW: "foreign"}
_ROOTLESS_HINTS = {
    # overlayfs renames a directory of a lower layer only with the mount option redirect_dir, which
    # excludes userxattr, which a rootless mount needs (Documentation/filesystems/overlayfs.rst).
    "moved": "Without root, a directory of the host cannot be renamed in a container: overlayfs "
    "does not support it there. Copy the directory and remove the original, as mv and shutil.move "
    "do, or run pytest as root.",
    "foreign": "The owner of the file is not mapped into the user namespace of a rootless "
    "container, so the file cannot be copied into the writable layer to be changed. Use a copy, "
    "pass the file in with volumes=, or run pytest as root.",
}
_UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.ENETDOWN}
_SHM = "/dev/shm"
#: Free bytes of a file system on which a write has failed: less than a few pages.
_NEARLY_NONE = 1 << 20
_USE_HOST_NETWORK = 'network="host" uses the host\'s network.'


class Symptom(NamedTuple):
    """An error that isolation often causes: its ``kind``, and the ``path`` that it names."""

    kind: str
    path: str = ""


def symptoms(error: BaseException | None) -> list[Symptom]:
    """Return the symptoms of an exception and of those that led to it."""
    found = [symptom for one in _chain(error, 0) if (symptom := _symptom(one))]
    return list(dict.fromkeys(found))


def _chain(error: BaseException | None, depth: int) -> Iterator[BaseException]:
    if error is None or depth > _MAX_DEPTH:
        return
    yield error
    for one in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
        if isinstance(one, BaseException):
            yield from _chain(one, depth + 1)


def _symptom(error: BaseException) -> Symptom | None:
    if isinstance(error, socket.gaierror):
        return Symptom("dns")
    if port := refused.port_of_browser(error):
        return Symptom("browser", port)
    target = refused.target_of(error)
    if target is not None:
        return Symptom("refused", target)
    if pid := outside_processes.pid_in(error):
        return Symptom("process", pid)
    if isinstance(error, TimeoutError | queue.Empty):
        return Symptom("waited")
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return Symptom("pids")
    return _symptom_of_errno(error) if isinstance(error, OSError) else None


def _symptom_of_errno(error: OSError) -> Symptom | None:
    number = error.errno
    path = error.filename if isinstance(error.filename, str) else ""
    if number in _UNREACHABLE or (number == errno.ENODEV and not path):
        # ENODEV: no device for a multicast group (ip(7), IP_ADD_MEMBERSHIP).
        return Symptom("unreachable")
    if number in {errno.ENOSPC, errno.EDQUOT}:
        return Symptom("full", path)
    if number in _ROOTLESS_ERRORS:
        return Symptom(_ROOTLESS_ERRORS[number], path)
    if number == errno.ENXIO and path:  # a FIFO that no process has open for reading (fifo(7))
        return Symptom("unread", os.path.abspath(path))
    if number == errno.EAGAIN and not path:  # fork(2)
        return Symptom("pids")
    if number == errno.ENOENT and path:
        return Symptom("missing", os.path.abspath(path))
    return None


#: Paths that tests have created in their containers, and the ID of the test.
_creators: dict[str, str] = {}
_MAX_CREATORS = 100_000
# Limits for one test: passing tests pay for this too.
_MAX_CHANGES = 1000
_MAX_SECONDS = 0.05


def remember_created_files(
    item: pytest.Item, container: Container, since: int = 0
) -> Changes | None:
    """Record the files that a test has created, for a later test that looks for one of them.

    ``since`` is its start in nanoseconds since the epoch. Returns what the test has changed, of
    many changes some; None if that cannot be found.
    """
    from pytest_sandbox.container.diff import changes_of

    try:
        found = changes_of(
            container.handle, most=_MAX_CHANGES, seconds=_MAX_SECONDS, as_user=True, since=since
        )
    except (SandboxError, OSError):
        return None
    if len(_creators) < _MAX_CREATORS:
        _creators.update((one.path, item.nodeid) for one in found if one.kind == "added")
    return found


def describe(found: list[Symptom], item: pytest.Item, container: Container, stats: Stats) -> str:
    """Return the hints, one line each; "" if isolation does not explain the failure."""
    lines = [line for one in dict.fromkeys(found) for line in _hints(one, item, container, stats)]
    if stats.oom_kills:
        lines.append(_out_of_memory(stats))
    if _free_bytes(container, _SHM) == 0:
        lines.append(_shm_full(container))
    return "\n".join(dict.fromkeys(lines))


def _out_of_memory(stats: Stats) -> str:
    """Return the hint for processes that the kernel killed for memory; the test that started them
    only sees SIGKILL.
    """
    killed = "a process" if stats.oom_kills == 1 else f"{stats.oom_kills} processes"
    if stats.memory_limit is None:
        reason = "because the machine ran out of memory."
        return f"Out of memory: the kernel killed {killed} inside, {reason}"
    return (
        f"Out of memory: the kernel killed {killed} inside. The container may use "
        f"{mib(stats.memory_limit)} (memory=), and its peak was {mib(stats.memory_peak)}."
    )


def _free_bytes(container: Container, path: str) -> int:
    """Return the free bytes of a file system inside; -1 if it has no size or cannot be read."""
    try:
        fd = open_inside(container.handle, path, os.O_PATH | os.O_DIRECTORY)
    except (OSError, SandboxError):
        return -1
    try:
        found = os.fstatvfs(fd)
    finally:
        os.close(fd)
    return found.f_bavail * found.f_frsize if found.f_blocks else -1


def _shm_full(container: Container) -> str:
    return (
        f"Shared memory is full: /dev/shm may hold {mib(container.settings.shm_size)} (shm_size=). "
        "The kernel kills a process that touches more by SIGBUS."
    )


def _full(path: str, container: Container) -> list[str]:
    """Return the hint for ENOSPC, which has other causes too, such as a limit on watches."""
    settings = container.settings
    if path.startswith(f"{_SHM}/"):
        return [_shm_full(container)]
    if settings.disk is not None:
        return [f"Disk full: the container's writable layer may hold {mib(settings.disk)} (disk=)."]
    if settings.storage == "memory" and 0 <= _free_bytes(container, "/") < _NEARLY_NONE:
        hint = (
            "Disk full: the container's writable layer is in memory and holds at most half of the "
            'machine\'s. storage="disk" stores it in a directory.'
        )
        return [hint]
    return []


def _hints(symptom: Symptom, item: pytest.Item, container: Container, stats: Stats) -> list[str]:
    kind, path = symptom
    settings = container.settings
    if kind == "refused":
        hints = refused.describe(path, has_own_loopback=settings.network != "host")
        return [*hints, *_unreachable_mounts(container, stat.S_ISSOCK)]
    if kind == "browser":
        return refused.describe_browser(path, has_own_loopback=settings.network != "host")
    if kind in {"process", "waited"}:
        return _of_pytest_process(symptom, item)
    if kind == "unread":
        return _unreachable_mounts(container, stat.S_ISFIFO, path)
    if kind in {"dns", "unreachable"} and settings.network != "host":
        start = "No name can be looked up inside: the" if kind == "dns" else "The"
        return [f"{start} {_reachable(settings.network)}. {_USE_HOST_NETWORK}"]
    if kind in _ROOTLESS_HINTS and container.handle.user_namespaces()[1] >= 0:
        return [_ROOTLESS_HINTS[kind]]
    if kind == "missing":
        return [*_missing(path, item), *_unreachable_mounts(container, stat.S_ISDIR, path)]
    if kind == "full":
        return _full(path, container)
    if kind == "pids" and settings.pids_limit is not None:
        limit = f"{settings.pids_limit} processes and threads (pids_limit=)"
        return [f"No more processes: the container may have {limit}, and had {stats.pids_peak}."]
    return []


def _of_pytest_process(symptom: Symptom, item: pytest.Item) -> list[str]:
    """Return the hint for what the pytest process has, and the process of the test has not."""
    if symptom.kind == "process":
        return outside_processes.describe(symptom.path)
    return [] if scopes.is_fresh(item) else missing_threads.describe()


def _reachable(network: object) -> str:
    """Return what a container on this network reaches, as the end of a sentence."""
    if is_limited(network):
        return f"container may connect to this only: {network}"
    if isinstance(network, str):
        return "container has no network but its own loopback"
    addresses = getattr(network, "addresses", {})
    found = ", ".join(f"{name} ({address})" for name, address in addresses.items())
    return f"container reaches only the containers on its network: {found}"


def _unreachable_mounts(
    container: Container, is_kind: Callable[[int], bool], path: str = ""
) -> list[str]:
    """Return a hint for each mount of the host that the container does not have.

    ``is_kind`` selects by the mode of the mount point; with ``path``, only mounts that contain it
    are named.
    """
    if not container.handle.spec.is_on_host:
        return []
    mounts: list[str] = []
    with suppress(SandboxError, OSError):
        mounts = [
            one
            for one in container.handle.launcher.unreachable_paths()
            if is_kind(os.stat(one).st_mode)
        ]
    return [
        f"{mount} is a mount of the host that is not available inside. "
        f'volumes=["{mount}:{mount}"] passes it in.'
        for mount in mounts
        if not path or f"{path}/".startswith(f"{mount}/")
    ]


def _missing(path: str, item: pytest.Item) -> list[str]:
    creator = _creators.get(path)
    if creator is None or creator == item.nodeid:
        return []
    hint = (
        f"{printable(path, TEXT)} was created by {creator}, in a container of its own, and "
        "discarded with it. A fixture with a higher scope creates it once for all tests; "
        'volumes=["DIRECTORY:DIRECTORY"] keeps a directory.'
    )
    return [hint]
