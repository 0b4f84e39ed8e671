"""Cgroup v1: a directory in the hierarchy of each controller.

Source: Documentation/admin-guide/cgroup-v1/ of the kernel.

A thread joins by writing "0" to each ``tasks`` file. Writing another PID, or to ``cgroup.procs``,
takes a lock over all threads that waits for RCU: 5 to 11 ms on an idle machine.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from functools import cached_property
from typing import TYPE_CHECKING

from pytest_sandbox.errors import UnsupportedError
from pytest_sandbox.linux.cgroup import v1_limits
from pytest_sandbox.linux.cgroup.base import PREFIX, UNLIMITED, Cgroup, Hierarchy, Session
from pytest_sandbox.linux.cgroup.directories import (
    TIMEOUT,
    destroy,
    kill_pids,
    make_owned,
    read_pids,
    remove_directory,
)
from pytest_sandbox.linux.cgroup.interface_files import (
    read,
    read_flat_keyed,
    read_number,
    write,
)
from pytest_sandbox.linux.cgroup.view import ShownCgroup
from pytest_sandbox.outcome import Stats
from pytest_sandbox.settings.settings import FrozenMap

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_sandbox.linux.cgroup.limits import CgroupLimits
    from pytest_sandbox.linux.cgroup.mounts import Mount
    from pytest_sandbox.settings.settings import Settings

__all__ = ["CgroupV1", "HierarchyV1", "SessionV1"]

#: Controllers used for every container: it is created before its limits are known, and usage is
#: counted only from the moment the processes join.
_ALWAYS = ("memory", "cpu", "cpuacct", "pids", "blkio")
#: Controllers used for a container that is paused or has a ``cpuset``. The session creates its
#: directories at once, because only locked cgroups are safe from cleanup by other processes.
_ON_DEMAND = ("freezer", "cpuset")

_NO_HIGH = (
    "cgroup v1 has no such limit: boot with cgroup v2 "
    "(systemd.unified_cgroup_hierarchy=1), or ask for memory= alone."
)


class HierarchyV1(Hierarchy):
    """The mount of each controller, and the calling process's cgroup in it."""

    version = 1
    names = FrozenMap({"io": "blkio"})

    def __init__(self, mounts: Iterable[Mount], own: dict[str, str]) -> None:
        self.mounts = {name: mount for mount in mounts for name in mount.controllers}
        #: The directory of the calling process's cgroup by controller, if the mount shows it.
        self.found = {
            name: path
            for name, mount in self.mounts.items()
            if (path := mount.directory(own.get(name, "/")))
        }
        #: The same, if it is writable.
        self.own = {
            name: path
            for name, path in self.found.items()
            if self.mounts[name].writable and os.access(path, os.W_OK)
        }
        self.controllers = frozenset(self.own)

    def remedy(self, controller: str) -> str:
        if controller not in self.mounts:
            return (
                f"The kernel's {controller} controller is not mounted: boot without "
                f"cgroup_disable={controller}, or with cgroup v2."
            )
        if not self.mounts[controller].writable:
            return (
                "The cgroup file system is read-only here: start the outer container with "
                "--privileged."
            )
        if os.geteuid():
            return (
                "cgroup v1 takes limits from root only: run pytest as root, or on a host with "
                "cgroup v2."
            )
        if controller not in self.found:
            return (
                f"This process's cgroup is not below the mount of the {controller} controller: a "
                "cgroup namespace hides it (unshare --cgroup). Mount the controller again in it, "
                "or start pytest outside of it."
            )
        return (
            f"Root may not write to {self.found[controller]} here: start pytest with "
            "CAP_DAC_OVERRIDE, and outside of a user namespace, or on a host with cgroup v2."
        )

    def require(self, settings: Settings) -> None:
        super().require(settings)
        if settings.memory_high is not None:
            raise UnsupportedError(f"memory_high={settings.memory_high!r}", _NO_HIGH)
        if settings.memory_swap is not None and not os.path.exists(
            f"{self.own['memory']}/memory.memsw.limit_in_bytes"
        ):
            raise UnsupportedError(
                f"memory_swap={settings.memory_swap!r}",
                "The kernel does not count swap: boot with swapaccount=1.",
            )

    def roots(self) -> tuple[str, ...]:
        return tuple({self.mounts[name].point: None for name in sorted(self.controllers)})

    def session(self, name: str) -> Session:
        session = SessionV1(self, name, self.own)
        session.make()
        return session

    def attach(self, name: str) -> Session:
        # The creator may have fewer rights than this process: a launcher in a user namespace of its
        # own has CAP_DAC_OVERRIDE there.
        directory = PREFIX + name
        own = {key: path for key, path in self.own.items() if os.path.isdir(f"{path}/{directory}")}
        return SessionV1(self, name, own)


class SessionV1(Session):
    """A directory below the calling process's cgroup in every hierarchy that is used; ``own`` is
    that cgroup's directory by controller.
    """

    def __init__(self, hierarchy: HierarchyV1, name: str, own: dict[str, str]) -> None:
        self._hierarchy = hierarchy
        self._own = own
        self.name = name
        #: The session's directory by controller; cpu and cpuacct share one if mounted together.
        self.by_controller = {
            name: directory for name in _ALWAYS if (directory := self.directory_of(name))
        }
        # Each directory once: a cgroup is created in all of them.
        self._always = tuple(dict.fromkeys(self.by_controller.values()))
        more = (
            directory for controller in _ON_DEMAND if (directory := self.directory_of(controller))
        )
        super().__init__(name, tuple(dict.fromkeys((*self._always, *more))))
        #: The mount that each of the session's directories is in.
        self._mounts = {
            directory: mount
            for controller, mount in hierarchy.mounts.items()
            if (directory := self.directory_of(controller))
        }

    def make(self) -> None:
        """Create and lock the session's cgroups."""
        made: list[str] = []
        try:
            for directory in self.directories:
                self._make(directory, made)
        except BaseException:
            destroy(made)
            self.close_locks()
            raise

    def _make(self, directory: str, made: list[str]) -> None:
        try:
            self.locks.append(make_owned(directory))
            made.append(directory)
            if os.path.exists(f"{directory}/cpuset.cpus"):
                inherit_cpuset(directory)
        except OSError:
            if directory in self._always:
                raise

    def need(self, controller: str) -> str:
        """Return the session's directory of a controller; raises UnsupportedError without it."""
        directory = self.directory_of(controller)
        if directory is None or not os.path.isdir(directory):
            raise UnsupportedError(
                f"cgroup controller {controller}", self._hierarchy.remedy(controller)
            )
        self.by_controller[controller] = directory
        return directory

    def directory_of(self, controller: str) -> str | None:
        """Return the path of the session's directory of a controller, which may not exist.

        It is None if the controller cannot be used.
        """
        own = self._own.get(controller)
        return own and f"{own}/{PREFIX}{self.name}"

    @cached_property
    def cpuset(self) -> str | None:
        """The session's cpuset, which has the CPUs of the calling process's; None without one."""
        directory = self.directory_of("cpuset")
        return directory if directory is not None and os.path.isdir(directory) else None

    def show(self, directory: str, path: str) -> ShownCgroup:
        """Return how a container shows the cgroup ``path``, in the hierarchy of one of the
        session's directories: under the names that the hierarchy has on the host.
        """
        mount = self._mounts[directory]
        names = mount.controllers - {point := os.path.basename(mount.point)}
        return ShownCgroup(path, point, tuple(sorted(names)))

    def create(self, name: str) -> CgroupV1:
        made: list[str] = []
        try:
            for directory in self._always:
                os.mkdir(path := f"{directory}/{name}")
                made.append(path)
        except OSError:
            destroy(made)
            raise
        return CgroupV1(self, name, tuple(made))

    def cgroup(self, name: str, limits: CgroupLimits = UNLIMITED) -> CgroupV1:
        directories = [f"{directory}/{name}" for directory in self._always]
        if limits.cpuset is not None:
            directories.append(f"{self.need('cpuset')}/{name}")
        return CgroupV1(self, name, tuple(directories), limits)


def inherit_cpuset(directory: str) -> None:
    """Copy the parent's CPUs and memory nodes to a new cpuset.

    Processes cannot join an empty one (cpusets.rst).
    """
    for name in ("cpuset.cpus", "cpuset.mems"):
        write(f"{directory}/{name}", read(f"{os.path.dirname(directory)}/{name}").strip())


class CgroupV1(Cgroup):
    """The directories of one container."""

    def __init__(
        self,
        session: SessionV1,
        name: str,
        directories: tuple[str, ...],
        limits: CgroupLimits = UNLIMITED,
    ) -> None:
        super().__init__(name)
        self._session = session
        self._directories = directories
        self._limits = limits

    def _directory(self, controller: str) -> str:
        return f"{self._session.by_controller[controller]}/{self.id}"

    def _path(self, controller: str, name: str) -> str:
        return f"{self._directory(controller)}/{name}"

    def _has(self, controller: str) -> bool:
        return controller in self._session.by_controller

    def join_paths(self) -> tuple[str, ...]:
        shared = self._shared_cpuset()
        directories = (*self._directories, shared) if shared else self._directories
        return tuple(f"{directory}/tasks" for directory in directories)

    def shown(self) -> tuple[ShownCgroup, ...]:
        shown = [self._session.show(os.path.dirname(path), path) for path in self._directories]
        if cpuset := self._shared_cpuset():
            shown.append(self._session.show(cpuset, cpuset))
        return tuple(shown)

    def _shared_cpuset(self) -> str | None:
        """Return the session's cpuset, if this container has limits and no cpuset of its own.

        The JVM looks for limits of memory and CPU time only if it also finds a cpuset.
        """
        cpuset, limits = self._session.cpuset, self._limits
        is_limited = limits.memory is not None or limits.cpus is not None
        return cpuset if is_limited and limits.cpuset is None else None

    def apply(self, limits: CgroupLimits, *, overhead: int = 0) -> None:
        if self._has("memory"):
            v1_limits.set_memory(self._directory("memory"), self._limits, limits)
        if self._has("cpu") and limits.cpus != self._limits.cpus:
            v1_limits.set_cpus(self._directory("cpu"), limits.cpus)
        if self._has("pids"):
            write(
                self._path("pids", "pids.max"),
                "max" if limits.pids_limit is None else limits.pids_limit + overhead,
            )
        if limits.cpuset != self._limits.cpuset:
            self._apply_cpuset(limits.cpuset)
        if (rates := limits.device_rates) != (before := self._limits.device_rates):
            v1_limits.set_rates(self._directory("blkio"), before, rates)
        self._limits = limits

    def _apply_cpuset(self, cpuset: str | None) -> None:
        directory = f"{self._session.need('cpuset')}/{self.id}"
        if directory not in self._directories:
            os.mkdir(directory)
            self._directories += (directory,)
            inherit_cpuset(directory)
        parent = read(f"{os.path.dirname(directory)}/cpuset.cpus").strip()
        try:
            write(f"{directory}/cpuset.cpus", cpuset or parent)
        except OSError as error:
            raise UnsupportedError(
                f"cpuset={cpuset!r}", f"The CPUs that may be used here are {parent}."
            ) from error
        self._gather(directory, time.monotonic() + TIMEOUT)

    def _gather(self, directory: str, deadline: float) -> None:
        """Move every process of the cgroup into a new directory until none is left outside.

        A process may fork while it is moved.
        """
        while outside := set(self.pids()) - set(read_pids(directory)):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    errno.ETIMEDOUT, f"processes {sorted(outside)} do not stay", directory
                )
            for pid in outside:
                try:
                    write(f"{directory}/cgroup.procs", pid)
                except ProcessLookupError:
                    continue

    def task_count(self) -> int | None:
        return self._number("pids", "pids.current")

    def stats(self) -> Stats:
        nothing: dict[str, int] = {}
        cpu = self._keyed("cpu", "cpu.stat") if self._has("cpu") else nothing
        throttled, used = cpu.get("throttled_time"), self._number("cpuacct", "cpuacct.usage")
        reads, writes = self._io()
        return Stats(
            memory_current=self._number("memory", "memory.usage_in_bytes"),
            memory_peak=self._number("memory", "memory.max_usage_in_bytes"),
            memory_limit=self._limits.memory,
            cpu_seconds=None if used is None else used / 1e9,
            cpu_throttled_seconds=None if throttled is None else throttled / 1e9,
            pids_current=self._number("pids", "pids.current"),
            pids_peak=self._number("pids", "pids.peak"),
            oom_kills=self._oom_kills(),
            io_read_bytes=reads,
            io_write_bytes=writes,
        )

    def _number(self, controller: str, name: str) -> int | None:
        if not self._has(controller):
            return None
        return read_number(self._path(controller, name), self.files.read)

    def _keyed(self, controller: str, name: str) -> dict[str, int]:
        return read_flat_keyed(self._path(controller, name), self.files.read)

    def _io(self) -> tuple[int | None, int | None]:
        """Return the bytes read and written: the sum of lines ``MAJOR:MINOR Read|Write BYTES``."""
        if not self._has("blkio"):
            return None, None
        text = self.files.read(self._path("blkio", "blkio.throttle.io_service_bytes"))
        lines = [line.split() for line in text.splitlines()]
        total = {
            kind: sum(int(line[2]) for line in lines if line[1:2] == [kind])
            for kind in ("Read", "Write")
        }
        return total["Read"], total["Write"]

    def page_cache_bytes(self) -> int:
        return (
            read_flat_keyed(self._path("memory", "memory.stat")).get("total_cache", 0)
            if self._has("memory")
            else 0
        )

    def _oom_kills(self) -> int | None:
        if not self._has("memory"):
            return None
        return self._keyed("memory", "memory.oom_control").get("oom_kill")

    def oom_kills(self) -> int:
        return self._oom_kills() or 0

    def pids(self) -> tuple[int, ...]:
        return read_pids(self._directories[0]) if self._directories else ()

    def freeze(self, timeout: float = TIMEOUT) -> None:
        deadline = time.monotonic() + timeout
        directory = f"{self._session.need('freezer')}/{self.id}"
        if directory not in self._directories:
            os.mkdir(directory)
            self._directories += (directory,)
        self._gather(directory, deadline)
        write(f"{directory}/freezer.state", "FROZEN")
        # Reading the file updates its state from FREEZING to FROZEN (freezer-subsystem.rst).
        while read(f"{directory}/freezer.state") != "FROZEN\n":
            if time.monotonic() > deadline:
                self.thaw()
                raise TimeoutError(errno.ETIMEDOUT, "processes do not freeze", directory)
            time.sleep(0.001)

    def thaw(self) -> None:
        if self._has("freezer") and os.path.exists(path := self._path("freezer", "freezer.state")):
            write(path, "THAWED")

    @contextlib.contextmanager
    def unthrottled(self) -> Iterator[None]:
        limited = self._limits.cpus is not None and self._has("cpu")
        with contextlib.ExitStack() as stack:
            if limited:
                stack.callback(self._set_cpus, self._limits.cpus)
                self._set_cpus(None)
            yield

    def _set_cpus(self, cpus: float | None) -> None:
        """Set the limit on CPU time, unless the cgroup was removed with its container."""
        with contextlib.suppress(FileNotFoundError):
            v1_limits.set_cpus(self._directory("cpu"), cpus)

    def is_frozen(self) -> bool:
        directory = self._session.directory_of("freezer")
        return (
            directory is not None
            and os.path.exists(path := f"{directory}/{self.id}/freezer.state")
            and read(path) != "THAWED\n"
        )

    def kill(self, timeout: float = TIMEOUT) -> None:
        if self._has("pids"):
            write(self._path("pids", "pids.max"), 0)  # no process can fork while they are killed
        self.thaw()  # frozen processes do not die (freezer-subsystem.rst)
        kill_pids(self.pids, timeout)

    def remove(self, timeout: float = TIMEOUT) -> None:
        on_demand = [
            f"{directory}/{self.id}"
            for name in _ON_DEMAND
            if (directory := self._session.directory_of(name))
        ]
        # Those on demand may have been created by another process of the session.
        for directory in dict.fromkeys((*self._directories, *on_demand)):
            remove_directory(directory, timeout)
