"""Cgroup v2 (Documentation/admin-guide/cgroup-v2.rst): one directory for each container.

It is created below the session's directory, which is created below a :class:`Parent`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import SetupError, UnsupportedError
from pytest_sandbox.linux.cgroup.base import (
    PERIOD,
    PREFIX,
    SCOPE,
    UNLIMITED,
    Cgroup,
    Hierarchy,
    Session,
)
from pytest_sandbox.linux.cgroup.directories import TIMEOUT, kill_pids, read_pids, remove_directory
from pytest_sandbox.linux.cgroup.interface_files import (
    device_number,
    read,
    read_flat_keyed,
    read_number,
    refused_rate,
    write,
)
from pytest_sandbox.linux.cgroup.v2_parent import LEAF, Parent, enable_controllers
from pytest_sandbox.linux.cgroup.view import ShownCgroup
from pytest_sandbox.outcome import Stats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_sandbox.linux.cgroup.limits import CgroupLimits
    from pytest_sandbox.linux.cgroup.mounts import Mount
    from pytest_sandbox.settings.settings import Settings

__all__ = ["CgroupV2", "HierarchyV2", "SessionV2"]

#: The key in io.max of each device rate.
_RATES = {
    "device_read_bps": "rbps",
    "device_write_bps": "wbps",
    "device_read_iops": "riops",
    "device_write_iops": "wiops",
}
_DELEGATE = (
    "Run it in a cgroup of your own: systemd-run --user --scope -p Delegate=yes -- pytest "
    '... (or "sudo" for the host\'s).'
)
_READ_ONLY = (
    "The cgroup file system is read-only here: start the outer container with --privileged."
)


class HierarchyV2(Hierarchy):
    """The mount of the unified hierarchy, and the parent of sessions that was found in it."""

    version = 2

    def __init__(self, mount: Mount, own: str) -> None:
        self.mount = mount
        self.own = mount.directory(own)
        self.parent = self._find_parent()
        self.controllers = self.parent.controllers if self.parent else frozenset()

    def _candidates(self) -> Iterator[Parent]:
        """Yield possible parents in the order of preference.

        First come the cgroups that belong to this process, by their name or by delegation, then
        those that need no process to be moved.
        """
        own = self.own
        if own is None:
            return
        if os.path.basename(own) == LEAF:
            yield Parent(os.path.dirname(own), populated=True)
        if _is_root(own):
            yield Parent(own)
        if _is_delegated(own) or own == self.mount.point:
            yield Parent(own, populated=True)
        yield from (
            Parent(directory)
            for directory in self._ancestors(own)
            if _is_root(directory) or not read(f"{directory}/cgroup.procs")
        )
        yield Parent(own, populated=True)

    def _ancestors(self, own: str) -> Iterator[str]:
        while own != self.mount.point and own.startswith(self.mount.point):
            own = os.path.dirname(own)
            yield own

    def _find_parent(self) -> Parent | None:
        """Return the first candidate with the most of memory, cpu and pids; None if unusable."""
        if not self.mount.writable:
            return None
        usable = [parent for parent in self._candidates() if _is_writable(parent.directory)]
        best = max(
            usable, key=lambda one: len(one.controllers & {"memory", "cpu", "pids"}), default=None
        )
        return best if best and (best.controllers or not best.populated) else None

    def remedy(self, controller: str) -> str:
        if not self.mount.writable:
            return _READ_ONLY
        if self.parent is None or os.geteuid():
            delegated = (
                f" That cgroup lacks {controller}: as root, `systemctl edit "
                "user@.service`, with [Service] Delegate=cpu cpuset io memory pids."
            )
            return _DELEGATE + (delegated if self.parent else "")
        return (
            f"{self.parent.directory} does not have it: as root, echo +{controller} into "
            "cgroup.subtree_control of each cgroup above."
        )

    def require(self, settings: Settings) -> None:
        super().require(settings)
        if settings.memory_swap is not None and _has_swap() and not self._counts_swap():
            raise UnsupportedError(
                f"memory_swap={settings.memory_swap!r}",
                "The kernel does not count swap: boot with swapaccount=1.",
            )

    def _counts_swap(self) -> bool:
        """Return whether a cgroup other than the root, which never has it, has memory.swap.max."""
        directories = (entry.path for entry in os.scandir(self.mount.point) if entry.is_dir())
        return any(
            os.path.exists(f"{directory}/memory.swap.max") for directory in (self.own, *directories)
        )

    def roots(self) -> tuple[str, ...]:
        return (self.mount.point,) if self.parent else ()

    def session(self, name: str) -> Session:
        if self.parent is None:
            return super().session(name)
        session = SessionV2(self.parent, name)
        session.make()
        return session

    def attach(self, name: str) -> Session:
        return SessionV2(self.parent, name) if self.parent else super().attach(name)


def _is_root(directory: str) -> bool:
    """Return whether a cgroup is the host's root, which alone has no cgroup.type.

    The root of a cgroup namespace has the file, and obeys the rules of other cgroups.
    """
    return not os.path.exists(f"{directory}/cgroup.type")


def _is_delegated(directory: str) -> bool:
    """Return whether systemd has delegated a cgroup.

    It sets an extended attribute (systemd's CGROUP_DELEGATION, "user.delegate"); versions before
    that are recognized by the name of the scope that this library has asked for.
    """
    if os.path.basename(directory).startswith(SCOPE):
        return True
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(directory, name) == b"1":
                return True
    return False


def _is_writable(directory: str) -> bool:
    return all(
        os.access(path, os.W_OK)
        for path in (directory, f"{directory}/cgroup.procs", f"{directory}/cgroup.subtree_control")
    )


def _has_swap() -> bool:
    return len(read("/proc/swaps").splitlines()) > 1


class SessionV2(Session):
    """A directory below the parent; it contains cgroups, and no processes."""

    def __init__(self, parent: Parent, name: str) -> None:
        self._parent = parent
        self.directory = f"{parent.directory}/{PREFIX}{name}"
        super().__init__(name, (self.directory,))

    def make(self) -> None:
        """Create and lock the session's cgroup."""
        try:
            self.locks.append(self._parent.add(self.directory))
        except OSError as error:
            raise SetupError("make the parent of all cgroups", str(error)) from error

    def create(self, name: str) -> Cgroup:
        directory = f"{self.directory}/{name}"
        os.mkdir(directory)
        return CgroupV2(self, name, directory)

    def cgroup(self, name: str, limits: CgroupLimits = UNLIMITED) -> Cgroup:
        return CgroupV2(self, name, f"{self.directory}/{name}", limits)

    def need_cpuset(self) -> None:
        """Enable the cpuset controller for the session's cgroups."""
        for directory in (self._parent.directory, self.directory):
            enable_controllers(directory, ("cpuset",))

    def close(self) -> None:
        super().close()
        self._parent.drop()


class CgroupV2(Cgroup):
    """The directory of one container."""

    def __init__(
        self, session: SessionV2, name: str, directory: str, limits: CgroupLimits = UNLIMITED
    ) -> None:
        super().__init__(name)
        self.directory = directory
        self._session = session
        self._fd = -1
        self._limits = limits

    def join_paths(self) -> tuple[str, ...]:
        return (f"{self.directory}/cgroup.procs",)

    def shown(self) -> tuple[ShownCgroup, ...]:
        return (ShownCgroup(self.directory),)

    def fd(self) -> int:
        if self._fd < 0:
            self._fd = os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._fd

    def open_fd(self) -> int:
        return self._fd

    def close(self) -> None:
        super().close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def apply(self, limits: CgroupLimits, *, overhead: int = 0) -> None:
        before, self._limits = self._limits, limits
        if limits.cpuset and before.cpuset is None:
            self._session.need_cpuset()
        for name, value in _changes(before, limits, overhead).items():
            self._limit(name, value)
        if (rates := limits.device_rates) != before.device_rates:
            self._limit_devices(
                [*((key, path, None) for key, path, _rate in before.device_rates), *rates]
            )

    def _limit_devices(self, rates: list[tuple[str, str, int | None]]) -> None:
        for key, path, rate in rates:
            device, value = device_number(path), "max" if rate is None else rate
            try:
                write(f"{self.directory}/io.max", f"{device} {_RATES[key]}={value}")
            except OSError as error:
                raise refused_rate(key, path, rate or 0, error) from error

    def _limit(self, name: str, value: str) -> None:
        """Write a limit to its file, if it exists.

        It does not exist if the limit was not requested (see ``require``) or the kernel has no
        swap at all.
        """
        try:
            write(f"{self.directory}/{name}", value)
        except FileNotFoundError:
            return
        except OSError as error:
            if name != "cpuset.cpus":
                raise
            allowed = read(f"{self._session.directory}/cpuset.cpus.effective").strip()
            raise UnsupportedError(
                f"cpuset={value!r}", f"The CPUs that may be used here are {allowed}."
            ) from error

    def task_count(self) -> int | None:
        return read_number(f"{self.directory}/pids.current")

    def stats(self) -> Stats:
        cpu = self._keyed("cpu.stat")
        used, throttled = cpu.get("usage_usec"), cpu.get("throttled_usec")
        reads, writes = self._io()
        return Stats(
            memory_current=self._number("memory.current"),
            memory_peak=self._number("memory.peak"),
            memory_limit=self._limits.memory,
            cpu_seconds=None if used is None else used / 1e6,
            cpu_throttled_seconds=None if throttled is None else throttled / 1e6,
            pids_current=self._number("pids.current"),
            pids_peak=self._number("pids.peak"),
            oom_kills=self._keyed("memory.events").get("oom_kill"),
            io_read_bytes=reads,
            io_write_bytes=writes,
        )

    def _number(self, name: str) -> int | None:
        return read_number(f"{self.directory}/{name}", self.files.read)

    def _keyed(self, name: str) -> dict[str, int]:
        return read_flat_keyed(f"{self.directory}/{name}", self.files.read)

    def _io(self) -> tuple[int | None, int | None]:
        """Return the bytes read and written: the sum of lines ``MAJOR:MINOR rbytes=N wbytes=N``."""
        try:
            words = self.files.read(f"{self.directory}/io.stat").split()
        except FileNotFoundError:
            return None, None
        pairs = [word.split("=") for word in words if "=" in word]
        reads, writes = (
            sum(int(value) for name, value in pairs if name == wanted)
            for wanted in ("rbytes", "wbytes")
        )
        return reads, writes

    def pressure(self) -> dict[str, Any]:
        found = (
            (f"{name}_pressure_seconds", _stalled(f"{self.directory}/{name}.pressure"))
            for name in ("cpu", "memory", "io")
        )
        return {name: seconds for name, seconds in found if seconds is not None}

    def page_cache_bytes(self) -> int:
        return read_flat_keyed(f"{self.directory}/memory.stat").get("file", 0)

    def oom_kills(self) -> int:
        return read_flat_keyed(f"{self.directory}/memory.events").get("oom_kill", 0)

    def pids(self) -> tuple[int, ...]:
        return read_pids(self.directory)

    def freeze(self, timeout: float = TIMEOUT) -> None:
        write(f"{self.directory}/cgroup.freeze", 1)
        try:
            self._wait_for_event("frozen", 1, timeout)
        except TimeoutError:
            self.thaw()
            raise

    def thaw(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # removed: there is nothing to thaw
            write(f"{self.directory}/cgroup.freeze", 0)

    @contextlib.contextmanager
    def unthrottled(self) -> Iterator[None]:
        limited = self._limits.cpus is not None
        if limited:
            self._limit("cpu.max", f"max {PERIOD}")
        try:
            yield
        finally:
            if limited:
                self._limit("cpu.max", _quota(self._limits.cpus))  # does nothing if it was removed

    def is_frozen(self) -> bool:
        return bool(read_number(f"{self.directory}/cgroup.freeze"))

    def _wait_for_event(self, event: str, value: int, timeout: float) -> None:
        """Wait for a line of cgroup.events; the kernel reports a change as POLLPRI."""
        deadline, path = time.monotonic() + timeout, f"{self.directory}/cgroup.events"
        with open(path, "rb", buffering=0) as file:
            poll = select.poll()
            poll.register(file, select.POLLPRI)
            while f"{event} {value}\n".encode() not in os.pread(file.fileno(), 4096, 0):
                if time.monotonic() > deadline:
                    raise TimeoutError(errno.ETIMEDOUT, f"{event} does not become {value}", path)
                poll.poll(max(1, int((deadline - time.monotonic()) * 1000)))

    def kill(self, timeout: float = TIMEOUT) -> None:
        try:
            write(f"{self.directory}/cgroup.kill", 1)
        except FileNotFoundError:  # before Linux 5.14
            kill_pids(self.pids, timeout)
        self._wait_for_event("populated", 0, timeout)

    def remove(self, timeout: float = TIMEOUT) -> None:
        self.close()
        remove_directory(self.directory, timeout)


def _stalled(path: str) -> float | None:
    """Return the seconds of the line ``some ... total=MICROSECONDS`` (accounting/psi.rst).

    It is None if the kernel does not count them.
    """
    try:
        return int(read(path).partition("total=")[2].split()[0]) / 1e6
    except OSError:  # ENOENT without CONFIG_PSI; EOPNOTSUPP if it was not booted with psi=1
        return None


def _quota(cpus: float | None) -> str:
    """Return the value of cpu.max: microseconds of CPU time, and of the period."""
    return f"{_or_max(None if cpus is None else round(cpus * PERIOD))} {PERIOD}"


def _or_max(value: int | None) -> str:
    return "max" if value is None else str(value)


def _swap(limits: CgroupLimits) -> int | None:
    """Return the limit on swap alone, in bytes; the setting limits the sum of memory and swap."""
    if limits.swap_limit is None or limits.memory is None:
        return None
    return limits.swap_limit - limits.memory


def _changes(before: CgroupLimits, limits: CgroupLimits, overhead: int) -> dict[str, str]:
    """Return the value of each file that has to be written, in the order of writing."""
    pids = None if limits.pids_limit is None else limits.pids_limit + overhead
    changes = {"pids.max": _or_max(pids)}
    if limits.cpuset != before.cpuset:
        changes["cpuset.cpus"] = limits.cpuset or "\n"
    if limits.cpus != before.cpus:
        changes["cpu.max"] = _quota(limits.cpus)
    if (limits.memory, limits.swap_limit) != (before.memory, before.swap_limit):
        changes["memory.swap.max"] = _or_max(_swap(limits))
        changes["memory.max"] = _or_max(limits.memory)
    if limits.memory_high != before.memory_high:
        changes["memory.high"] = _or_max(limits.memory_high)
    return changes
