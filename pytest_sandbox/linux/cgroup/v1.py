"""Cgroup v1: one directory in each controller's own hierarchy.

A thread enters by writing "0" to each ``tasks``; writing another's number, or to ``cgroup.procs``,
takes a lock over all threads that waits for RCU (5 - 11 ms on an idle machine). Source:
Documentation/admin-guide/cgroup-v1/ of the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import time
from typing import TYPE_CHECKING

from pytest_sandbox.errors import UnsupportedError
from pytest_sandbox.linux.cgroup import (
    PATIENCE,
    PERIOD,
    PREFIX,
    UNLIMITED,
    Group,
    Hierarchy,
    Session,
    destroy,
    device_number,
    kill_members,
    make_owned,
    members,
    number,
    read,
    refused_rate,
    remove_directory,
    table,
    write,
)
from pytest_sandbox.outcome import Stats
from pytest_sandbox.settings import FrozenMap

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_sandbox.linux.cgroup import Mount
    from pytest_sandbox.settings import Settings

__all__ = ["GroupV1", "HierarchyV1", "SessionV1"]

#: Made for every container: limits have to be there before they are known, and figures cannot be
#: had afterwards.
ALWAYS = ("memory", "cpu", "cpuacct", "pids", "blkio")
#: Made for a container that is paused, or has ``cpuset``; a session has them from the start,
#: because only locked cgroups are safe from cleanups.
_ON_DEMAND = ("freezer", "cpuset")

_NO_HIGH = (
    "cgroup v1 has no such limit: boot with cgroup v2 "
    "(systemd.unified_cgroup_hierarchy=1), or ask for memory= alone."
)
#: The file of each key of a device's rate.
_RATES = {
    "device_read_bps": "blkio.throttle.read_bps_device",
    "device_write_bps": "blkio.throttle.write_bps_device",
    "device_read_iops": "blkio.throttle.read_iops_device",
    "device_write_iops": "blkio.throttle.write_iops_device",
}


class HierarchyV1(Hierarchy):
    """Each controller's mount, and our own group in it."""

    version = 1
    names = FrozenMap({"io": "blkio"})

    def __init__(self, mounts: Iterable[Mount], own: dict[str, str]) -> None:
        self.mounts = {name: mount for mount in mounts for name in mount.controllers}
        #: Our own group's directory by controller, where the mount shows it.
        self.found = {
            name: path
            for name, mount in self.mounts.items()
            if (path := mount.directory(own.get(name, "/")))
        }
        #: Our own group's directory by controller, where groups can be made in it.
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
            return "cgroup v1 obeys root only: run pytest as root, or on a host with cgroup v2."
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
        made = SessionV1(self, name)
        made.make()
        return made

    def attach(self, name: str) -> Session:
        return SessionV1(self, name)


class SessionV1(Session):
    """A directory below our own group in every hierarchy that is used."""

    def __init__(self, hierarchy: HierarchyV1, name: str) -> None:
        self._hierarchy = hierarchy
        self.name = name
        #: The session's directory by controller; joined controllers (cpu,cpuacct) share one.
        self.by_controller = {
            name: directory for name in ALWAYS if (directory := self.directory_of(name))
        }
        # A launcher in a user namespace has rights that its client lacks: what counts is what the
        # client has made.
        made = {name: path for name, path in self.by_controller.items() if os.path.isdir(path)}
        self.by_controller = made or self.by_controller
        # Distinct directories, by which a group is made.
        self._always = tuple(dict.fromkeys(self.by_controller.values()))
        more = (
            directory for controller in _ON_DEMAND if (directory := self.directory_of(controller))
        )
        super().__init__(name, tuple(dict.fromkeys((*self._always, *more))))

    def make(self) -> None:
        """Make and lock the session's cgroups."""
        made: list[str] = []
        try:
            for directory in self.directories:
                self._make(directory, made)
        except BaseException:
            destroy(made)
            self.hand_over()
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
        """Return the session's directory of a controller; UnsupportedError where it has none."""
        directory = self.directory_of(controller)
        if directory is None or not os.path.isdir(directory):
            raise UnsupportedError(
                f"cgroup controller {controller}", self._hierarchy.remedy(controller)
            )
        self.by_controller[controller] = directory
        return directory

    def directory_of(self, controller: str) -> str | None:
        """Return where the session's directory of a controller is, or would be; None without that
        controller.
        """
        own = self._hierarchy.own.get(controller)
        return own and f"{own}/{PREFIX}{self.name}"

    def create(self, name: str) -> GroupV1:
        made: list[str] = []
        try:
            for directory in self._always:
                os.mkdir(path := f"{directory}/{name}")
                made.append(path)
        except OSError:
            destroy(made)
            raise
        return GroupV1(self, name, tuple(made))

    def group(self, name: str, limits: Settings = UNLIMITED) -> GroupV1:
        directories = [f"{directory}/{name}" for directory in self._always]
        if limits.cpuset is not None:
            directories.append(f"{self.need('cpuset')}/{name}")
        return GroupV1(self, name, tuple(directories), limits)


def inherit_cpuset(directory: str) -> None:
    """Give a new cpuset what its parent has: empty, it takes no process (cgroup-v1/cpusets.rst)."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        write(f"{directory}/{name}", read(f"{os.path.dirname(directory)}/{name}").strip())


class GroupV1(Group):
    """One container's directories."""

    def __init__(
        self,
        session: SessionV1,
        name: str,
        directories: tuple[str, ...],
        limits: Settings = UNLIMITED,
    ) -> None:
        super().__init__(name)
        self._session = session
        self._directories = directories
        self._limits = limits

    def _path(self, controller: str, name: str) -> str:
        return f"{self._session.by_controller[controller]}/{self.id}/{name}"

    def _has(self, controller: str) -> bool:
        return controller in self._session.by_controller

    def joins(self) -> tuple[str, ...]:
        return tuple(f"{directory}/tasks" for directory in self._directories)

    def apply(self, limits: Settings, *, overhead: int = 0) -> None:
        if self._has("memory"):
            self._apply_memory(limits)
        if self._has("cpu") and limits.cpus != self._limits.cpus:
            self._apply_cpus(limits.cpus)
        if self._has("pids"):
            write(
                self._path("pids", "pids.max"),
                "max" if limits.pids_limit is None else limits.pids_limit + overhead,
            )
        if limits.cpuset != self._limits.cpuset:
            self._apply_cpuset(limits.cpuset)
        if (rates := limits.device_rates()) != (before := self._limits.device_rates()):
            self._apply_rates(before, rates)
        self._limits = limits

    def _apply_rates(
        self, before: Iterable[tuple[str, str, int]], rates: Iterable[tuple[str, str, int]]
    ) -> None:
        """Write what is wanted, and 0, which is no limit, for what no longer is
        (cgroup-v1/blkio-controller.rst).
        """
        for key, path, rate in [*((key, path, 0) for key, path, _rate in before), *rates]:
            device = device_number(path)
            try:
                write(self._path("blkio", _RATES[key]), f"{device} {rate}")
            except OSError as error:
                raise refused_rate(key, path, rate, error) from error

    def _apply_memory(self, limits: Settings) -> None:
        """The kernel keeps memory within memory plus swap at every moment, so what grows is written
        from the sum, what shrinks from the part.
        """
        wanted, before = (
            (limits.memory, limits.swap_limit),
            (self._limits.memory, self._limits.swap_limit),
        )
        if wanted == before:
            return
        names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        writes = list(zip(names, wanted, strict=True))
        if (math.inf if limits.memory is None else limits.memory) > (
            math.inf if before[1] is None else before[1]
        ):
            writes.reverse()
        for name, value in writes:
            self._write_memory(name, -1 if value is None else value)
        self._bound_tcp_buffers(limits.memory)

    def _bound_tcp_buffers(self, memory: int | None) -> None:
        """Bound the buffers of TCP sockets, which version 1 does not count as memory of the cgroup
        (cgroup-v1/memory.rst, 2.7.1).
        """
        with contextlib.suppress(
            FileNotFoundError
        ):  # a kernel without CONFIG_INET or CONFIG_MEMCG_KMEM has no such file
            write(
                self._path("memory", "memory.kmem.tcp.limit_in_bytes"),
                -1 if memory is None else memory,
            )

    def _write_memory(self, name: str, value: int) -> None:
        try:
            write(self._path("memory", name), value)
        except FileNotFoundError:
            # Without the accounting of swap: swappiness 0 keeps the group's own pages out of it
            # (cgroup-v1/memory.rst, 5.3).
            write(
                self._path("memory", "memory.swappiness"),
                0 if value > 0 else read("/proc/sys/vm/swappiness").strip(),
            )
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            used = number(self._path("memory", "memory.usage_in_bytes"))
            raise UnsupportedError(
                f"memory={value}", f"The container already uses {used} bytes: give it more."
            ) from error

    def _apply_cpus(self, cpus: float | None) -> None:
        try:
            write(
                self._path("cpu", "cpu.cfs_quota_us"), -1 if cpus is None else round(cpus * PERIOD)
            )
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # A child's share may not be above its parent's (scheduler/sched-bwc.rst).
            raise UnsupportedError(
                f"cpus={cpus}",
                "The group that the tests run in has fewer: ask for fewer, or raise its own.",
            ) from error

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
        self._gather(directory, time.monotonic() + PATIENCE)

    def _gather(self, directory: str, deadline: float) -> None:
        """Move every process of the group into a directory that it did not have, until a look finds
        none outside.
        """
        while outside := set(self.pids()) - set(members(directory)):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    errno.ETIMEDOUT, f"processes {sorted(outside)} do not stay", directory
                )
            for pid in outside:
                try:
                    write(f"{directory}/cgroup.procs", pid)
                except ProcessLookupError:
                    continue

    def count(self) -> int | None:
        return self._number("pids", "pids.current")

    def stats(self) -> Stats:
        nothing: dict[str, int] = {}
        cpu = table(self._path("cpu", "cpu.stat")) if self._has("cpu") else nothing
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
        return number(self._path(controller, name)) if self._has(controller) else None

    def _io(self) -> tuple[int | None, int | None]:
        """Add up the lines ``MAJOR:MINOR Read|Write|... BYTES``."""
        if not self._has("blkio"):
            return None, None
        lines = [
            line.split()
            for line in read(self._path("blkio", "blkio.throttle.io_service_bytes")).splitlines()
        ]
        total = {
            kind: sum(int(line[2]) for line in lines if line[1:2] == [kind])
            for kind in ("Read", "Write")
        }
        return total["Read"], total["Write"]

    def files_bytes(self) -> int:
        return (
            table(self._path("memory", "memory.stat")).get("total_cache", 0)
            if self._has("memory")
            else 0
        )

    def _oom_kills(self) -> int | None:
        return (
            table(self._path("memory", "memory.oom_control")).get("oom_kill")
            if self._has("memory")
            else None
        )

    def oom_kills(self) -> int:
        return self._oom_kills() or 0

    def pids(self) -> tuple[int, ...]:
        return members(self._directories[0]) if self._directories else ()

    def freeze(self, seconds: float = PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        directory = f"{self._session.need('freezer')}/{self.id}"
        if directory not in self._directories:
            os.mkdir(directory)
            self._directories += (directory,)
        self._gather(directory, deadline)
        write(f"{directory}/freezer.state", "FROZEN")
        while (
            read(f"{directory}/freezer.state") != "FROZEN\n"
        ):  # reading is what brings FREEZING forward (freezer-subsystem.rst)
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
        """Limit CPU time, unless the cgroup went with its container."""
        with contextlib.suppress(FileNotFoundError):
            self._apply_cpus(cpus)

    def is_frozen(self) -> bool:
        directory = self._session.directory_of("freezer")
        return (
            directory is not None
            and os.path.exists(path := f"{directory}/{self.id}/freezer.state")
            and read(path) != "THAWED\n"
        )

    def kill(self, seconds: float = PATIENCE) -> None:
        if self._has("pids"):
            write(self._path("pids", "pids.max"), 0)  # no fork outruns the killing
        self.thaw()  # frozen, it would not die
        kill_members(self.pids, seconds)

    def remove(self, seconds: float = PATIENCE) -> None:
        on_demand = [
            f"{directory}/{self.id}"
            for name in _ON_DEMAND
            if (directory := self._session.directory_of(name))
        ]
        for directory in dict.fromkeys(
            (*self._directories, *on_demand)
        ):  # the session's other end may have made these
            remove_directory(directory, seconds)
