"""The interface of both cgroup versions: a hierarchy, a launcher's session, a container's cgroup.

These classes are also what a host without usable cgroups gets: they limit nothing, count nothing,
and :meth:`Hierarchy.require` raises for every limit that was requested.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import UnsupportedError
from pytest_sandbox.linux.cgroup.directories import TIMEOUT, destroy, walk
from pytest_sandbox.linux.cgroup.interface_files import InterfaceFiles
from pytest_sandbox.linux.cgroup.limits import CgroupLimits
from pytest_sandbox.outcome import Stats
from pytest_sandbox.settings.settings import DEVICE_RATES, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_sandbox.linux.cgroup.view import ShownCgroup

__all__ = ["PERIOD", "PREFIX", "SCOPE", "UNLIMITED", "Cgroup", "Hierarchy", "Session"]

#: The name of a session's directory is this prefix and the session's name, in every hierarchy.
PREFIX = "pytest-sandbox-"
#: The name of a scope that systemd has made for this library starts with this prefix.
SCOPE = "run-pytest-sandbox-"
#: Microseconds of a period of CPU bandwidth control, the kernel's default
#: (scheduler/sched-bwc.rst).
PERIOD = 100_000
UNLIMITED = CgroupLimits()

#: The controller that each limit needs, by its name in version 2.
_CONTROLLERS = {
    **dict.fromkeys(("memory", "memory_swap", "memory_high"), "memory"),
    "cpus": "cpu",
    "cpuset": "cpuset",
    "pids_limit": "pids",
    **dict.fromkeys(DEVICE_RATES, "io"),
}
_DEFAULTS = Settings()


class Cgroup:
    """The cgroup of one container; this class is the one of a host without usable cgroups."""

    def __init__(self, name: str, remedy: str = "") -> None:
        self.id = name
        self._remedy = remedy
        self.files = InterfaceFiles()

    def join_paths(self) -> tuple[str, ...]:
        """Return the absolute paths to which a single-threaded process writes "0" to join."""
        return ()

    def shown(self) -> tuple[ShownCgroup, ...]:
        """Return what the container has below /sys/fs/cgroup."""
        return ()

    def fd(self) -> int:
        """Return a descriptor for CLONE_INTO_CGROUP (clone3(2)), which :meth:`remove` closes.

        It is -1 if a process can join only through :meth:`join_paths`.
        """
        return -1

    def open_fd(self) -> int:
        """Return the descriptor that :meth:`fd` has opened; -1 if none is open."""
        return -1

    def close(self) -> None:
        """Close the descriptors of this handle; the cgroup stays."""
        self.files.close()

    def apply(self, limits: CgroupLimits, *, overhead: int = 0) -> None:
        """Set memory, swap, cpus, cpuset, pids and device rates to ``limits``.

        Works too if there are other limits and processes already. ``overhead`` processes of this
        library, such as init, are allowed in addition to ``pids_limit``. Raises UnsupportedError if
        the kernel refuses a value, OSError for other failures.
        """

    def task_count(self) -> int | None:
        """Return the number of tasks, zombies included; None without a pids controller."""
        return None

    def stats(self) -> Stats:
        """Return what the processes have used; None for each figure that is not counted here."""
        return Stats(None, None, None, None, None, None, None, None, None, None)

    def pressure(self) -> dict[str, Any]:
        """Return the seconds in which a process waited for a resource, by the field of Stats.

        Only version 2 has them (accounting/psi.rst).
        """
        return {}

    def page_cache_bytes(self) -> int:
        """Return how many bytes of the memory in use are pages of files, including tmpfs."""
        return 0

    def oom_kills(self) -> int:
        """Return how many processes the kernel has killed in this cgroup for lack of memory."""
        return 0

    def pids(self) -> tuple[int, ...]:
        """Return the PIDs of the processes in the cgroup, in the caller's PID namespace."""
        return ()

    def freeze(self, timeout: float = TIMEOUT) -> None:  # noqa: ARG002 - the subclasses wait
        """Stop all processes, and return when they have stopped.

        Raises TimeoutError after ``timeout`` seconds, and UnsupportedError if cgroups cannot be
        frozen on this host.
        """
        raise UnsupportedError("pause", self._remedy)

    def thaw(self) -> None:
        """Let the processes continue."""

    @contextlib.contextmanager
    def unthrottled(self) -> Iterator[None]:
        """Lift the limit on CPU time in a ``with`` block: a killed process needs time to exit."""
        yield

    def is_frozen(self) -> bool:
        """Return whether the processes are stopped, by this process or by another one."""
        return False

    def kill(self, timeout: float = TIMEOUT) -> None:
        """Kill all processes, frozen ones too, and return when there are none.

        Raises TimeoutError after ``timeout`` seconds.
        """

    def remove(self, timeout: float = TIMEOUT) -> None:
        """Remove the empty cgroup; raises OSError (EBUSY) if it is in use for ``timeout`` seconds.

        The kernel releases a cgroup a moment after its last process was reaped.
        """


class Session:
    """The parent of all cgroups of one launcher."""

    def __init__(self, name: str, directories: tuple[str, ...] = (), remedy: str = "") -> None:
        self.name = name
        self._remedy = remedy
        self.directories = directories
        """The directories that cleanup destroys after the session has ended."""
        self.locks: list[int] = []
        """Descriptors whose locks mark the session as alive; the launcher inherits them."""

    def create(self, name: str) -> Cgroup:
        """Create a cgroup without limits."""
        return Cgroup(name, self._remedy)

    def cgroup(self, name: str, limits: CgroupLimits = UNLIMITED) -> Cgroup:  # noqa: ARG002
        """Return a handle of a cgroup that another process has created with ``limits``."""
        return Cgroup(name, self._remedy)

    def close_locks(self) -> None:
        """Close this process's descriptors of the locks, which another process has inherited."""
        while self.locks:
            os.close(self.locks.pop())

    def close(self) -> None:
        """Kill every process of the session, and remove its cgroups."""
        destroy(self.directories)
        self.close_locks()


class Hierarchy:
    """The cgroups of the calling process, and the controllers that it may use in them."""

    version = 0
    controllers: frozenset[str] = frozenset()
    """The controllers that sessions can use, by the kernel's names (v2 has ``io``; v1 has
    ``blkio``, ``cpuacct`` and ``freezer``).
    """
    names: Mapping[str, str] = {}
    """The name in this version of each controller whose name in version 2 differs."""

    def remedy(self, controller: str) -> str:
        """Return a sentence that says how to make ``controller`` usable."""
        return (
            f"No cgroup file system is mounted here, so {controller} cannot be limited: run where "
            "/sys/fs/cgroup is mounted (an outer container: start it with --privileged)."
        )

    def require(self, settings: Settings) -> None:
        """Raise UnsupportedError for a limit that was requested and cannot be enforced.

        Default values that cannot be enforced are ignored, unless they were given explicitly.
        """
        for key, name in _CONTROLLERS.items():
            value, default = getattr(settings, key), getattr(_DEFAULTS, key)
            requested = value != default or (key in settings.given and value)
            if (
                requested
                and value is not None
                and (controller := self.names.get(name, name)) not in self.controllers
            ):
                raise UnsupportedError(f"{key}={value!r}", self.remedy(controller))

    def session(self, name: str) -> Session:
        """Create and lock the cgroup ``pytest-sandbox-NAME`` in every hierarchy that is used.

        Raises FileExistsError if it exists.
        """
        return Session(name, remedy=self.remedy("freezer"))

    def attach(self, name: str) -> Session:
        """Return a handle of a session that another process has created."""
        return Session(name, remedy=self.remedy("freezer"))

    def roots(self) -> tuple[str, ...]:
        """Return the directories below which sessions of this host can be found."""
        return ()

    def sessions(self) -> Mapping[str, tuple[str, ...]]:
        """Return the directories of every session on this host by its name.

        Sessions of all users and containers are found, also those whose launcher has ended.
        """
        found: dict[str, list[str]] = {}
        for root in self.roots():
            for path in walk(root):
                name = os.path.basename(path)
                if name.startswith(PREFIX):
                    found.setdefault(name.removeprefix(PREFIX), []).append(path)
        return {name: tuple(directories) for name, directories in found.items()}
