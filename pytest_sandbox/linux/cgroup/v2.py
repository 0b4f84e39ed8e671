"""Cgroup v2: one directory for a container, below a session's directory, below a *base*: a group
that may have groups with limits.

A group other than the root has either processes or controlled groups (the no-internal-process rule
of cgroup-v2.rst). The base is found so that as little as possible is moved: see
:meth:`HierarchyV2._candidates`. Where our own group becomes the base, its processes go into a leaf
of it, and back again when the last session ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import time
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import SetupError, UnsupportedError
from pytest_sandbox.linux.cgroup import (
    LEAF,
    PATIENCE,
    PERIOD,
    PREFIX,
    SCOPE,
    UNLIMITED,
    Group,
    Hierarchy,
    Session,
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

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_sandbox.linux.cgroup import Mount
    from pytest_sandbox.linux.cgroup_limits import CgroupLimits
    from pytest_sandbox.settings import Settings

__all__ = ["Base", "GroupV2", "HierarchyV2", "SessionV2"]

#: Handed down to every session; cpuset is, when somebody asks for it.
ALWAYS = ("memory", "cpu", "pids", "io")
_WANTED = frozenset({*ALWAYS, "cpuset"})
#: The word of io.max for each key of a device's rate.
_RATES = {
    "device_read_bps": "rbps",
    "device_write_bps": "wbps",
    "device_read_iops": "riops",
    "device_write_iops": "wiops",
}
_DELEGATE = (
    "Run it in a group of your own: systemd-run --user --scope -p Delegate=yes -- pytest "
    '... (or "sudo" for the host\'s).'
)
_READ_ONLY = (
    "The cgroup file system is read-only here: start the outer container with --privileged."
)


class Base:
    """A group below which sessions are made; ``crowded`` where its own processes have to go into a
    leaf first.
    """

    def __init__(self, directory: str, *, crowded: bool = False) -> None:
        self.directory = directory
        self.crowded = crowded
        self.controllers = _words(f"{directory}/cgroup.controllers") & _WANTED

    @contextlib.contextmanager
    def _locked(self, seconds: float = PATIENCE) -> Iterator[None]:
        """Workers of one suite share a base: one at a time makes room in it, or gives it back. A
        kernfs directory takes flock(2).
        """
        deadline = time.monotonic() + seconds
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            while not _try_lock(fd):
                if time.monotonic() > deadline:
                    raise SetupError(
                        "lock the parent of all groups",
                        f"{self.directory} is locked by another process",
                    )
                time.sleep(0.005)
            yield
        finally:
            os.close(fd)

    def add(self, session: str) -> int:
        """Make a session's directory that can have groups with limits; return the descriptor that
        holds its lock.
        """
        with self._locked():
            if self.crowded:
                self._make_room()
            else:
                _hand_down(self.directory, ALWAYS)
            lock = make_owned(session)
            _hand_down(session, ALWAYS)
            return lock

    def _make_room(self, seconds: float = PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        with contextlib.suppress(FileExistsError):
            os.mkdir(f"{self.directory}/{LEAF}")
        while True:
            _move(self.directory, f"{self.directory}/{LEAF}")
            try:
                return _hand_down(self.directory, ALWAYS)
            except OSError as error:  # a process was forked in between, or is not ours to move
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise

    def drop(self) -> None:
        """After the last session, undo what made room for the first."""
        with self._locked():
            entries = os.listdir(self.directory)
            if LEAF in entries and not any(entry.startswith(PREFIX) for entry in entries):
                handed = _words(f"{self.directory}/cgroup.subtree_control")
                write(
                    f"{self.directory}/cgroup.subtree_control",
                    " ".join(f"-{name}" for name in handed),
                )
                self._empty_leaf()

    def _empty_leaf(self, seconds: float = PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        while True:
            _move(f"{self.directory}/{LEAF}", self.directory)
            try:
                return os.rmdir(f"{self.directory}/{LEAF}")
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _words(path: str) -> frozenset[str]:
    return frozenset(read(path).split())


def _hand_down(directory: str, controllers: tuple[str, ...]) -> None:
    """Let the directory's groups have those of the controllers that the directory has."""
    lacking = (_words(f"{directory}/cgroup.controllers") & set(controllers)) - _words(
        f"{directory}/cgroup.subtree_control"
    )
    if lacking:
        write(
            f"{directory}/cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(lacking))
        )


def _move(source: str, target: str) -> None:
    for pid in members(source):
        with contextlib.suppress(ProcessLookupError):
            write(f"{target}/cgroup.procs", pid)


class HierarchyV2(Hierarchy):
    """The one mount, and the base that was found in it."""

    version = 2

    def __init__(self, mount: Mount, own: str) -> None:
        self.mount = mount
        self.own = mount.directory(own)
        self.base = self._find_base()
        self.controllers = self.base.controllers if self.base else frozenset()

    def _candidates(self) -> Iterator[Base]:
        """Bases in the order of preference: first what is ours by name or by right, then what costs
        nobody a move.
        """
        own = self.own
        if own is None:
            return
        if os.path.basename(own) == LEAF:
            yield Base(os.path.dirname(own), crowded=True)
        if _is_root(own):
            yield Base(own)
        if _delegated(own) or own == self.mount.point:
            yield Base(own, crowded=True)
        yield from (
            Base(directory)
            for directory in self._ancestors(own)
            if _is_root(directory) or not read(f"{directory}/cgroup.procs")
        )
        yield Base(own, crowded=True)

    def _ancestors(self, own: str) -> Iterator[str]:
        while own != self.mount.point and own.startswith(self.mount.point):
            own = os.path.dirname(own)
            yield own

    def _find_base(self) -> Base | None:
        """Choose the first that has all the controllers, else the one that has most."""
        if not self.mount.writable:
            return None
        usable = [base for base in self._candidates() if _obeys(base.directory)]
        best = max(
            usable, key=lambda base: len(base.controllers & {"memory", "cpu", "pids"}), default=None
        )
        return best if best and (best.controllers or not best.crowded) else None

    def remedy(self, controller: str) -> str:
        if not self.mount.writable:
            return _READ_ONLY
        if self.base is None or os.geteuid():
            delegated = (
                f" That group lacks {controller}: as root, `systemctl edit "
                "user@.service`, with [Service] Delegate=cpu cpuset io memory pids."
            )
            return _DELEGATE + (delegated if self.base else "")
        return (
            f"{self.base.directory} does not have it: as root, echo +{controller} into "
            "cgroup.subtree_control of each group above."
        )

    def require(self, settings: Settings) -> None:
        super().require(settings)
        if settings.memory_swap is not None and _swaps() and not self._counts_swap():
            raise UnsupportedError(
                f"memory_swap={settings.memory_swap!r}",
                "The kernel does not count swap: boot with swapaccount=1.",
            )

    def _counts_swap(self) -> bool:
        """Ask any group that is not the root: the root has no such file."""
        directories = (entry.path for entry in os.scandir(self.mount.point) if entry.is_dir())
        return any(
            os.path.exists(f"{directory}/memory.swap.max") for directory in (self.own, *directories)
        )

    def roots(self) -> tuple[str, ...]:
        return (self.mount.point,) if self.base else ()

    def session(self, name: str) -> Session:
        if self.base is None:
            return super().session(name)
        made = SessionV2(self.base, name)
        made.make()
        return made

    def attach(self, name: str) -> Session:
        return SessionV2(self.base, name) if self.base else super().attach(name)


def _is_root(directory: str) -> bool:
    """The host's root has no cgroup.type; a container's root has one, and its rules."""
    return not os.path.exists(f"{directory}/cgroup.type")


def _delegated(directory: str) -> bool:
    """Whether systemd has given the group away (systemd's CGROUP_DELEGATION, "user.delegate"), also
    by a version that does not say so.
    """
    if os.path.basename(directory).startswith(SCOPE):
        return True
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(directory, name) == b"1":
                return True
    return False


def _obeys(directory: str) -> bool:
    return all(
        os.access(path, os.W_OK)
        for path in (directory, f"{directory}/cgroup.procs", f"{directory}/cgroup.subtree_control")
    )


def _swaps() -> bool:
    return len(read("/proc/swaps").splitlines()) > 1


class SessionV2(Session):
    """A directory below the base; it holds groups only."""

    def __init__(self, base: Base, name: str) -> None:
        self._base = base
        self.directory = f"{base.directory}/{PREFIX}{name}"
        super().__init__(name, (self.directory,))

    def make(self) -> None:
        """Make and lock the session's cgroup."""
        try:
            self.locks.append(self._base.add(self.directory))
        except OSError as error:
            raise SetupError("make the parent of all groups", str(error)) from error

    def create(self, name: str) -> Group:
        directory = f"{self.directory}/{name}"
        os.mkdir(directory)
        return GroupV2(self, name, directory)

    def group(self, name: str, limits: CgroupLimits = UNLIMITED) -> Group:
        return GroupV2(self, name, f"{self.directory}/{name}", limits)

    def need_cpuset(self) -> None:
        for directory in (self._base.directory, self.directory):
            _hand_down(directory, ("cpuset",))

    def close(self) -> None:
        super().close()
        self._base.drop()


class GroupV2(Group):
    """One container's directory."""

    def __init__(
        self, session: SessionV2, name: str, directory: str, limits: CgroupLimits = UNLIMITED
    ) -> None:
        super().__init__(name)
        self.directory = directory
        self._session = session
        self._fd = -1
        self._limits = limits

    def joins(self) -> tuple[str, ...]:
        return (f"{self.directory}/cgroup.procs",)

    def fd(self) -> int:
        if self._fd < 0:
            self._fd = os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._fd

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
            device = device_number(path)
            try:
                write(
                    f"{self.directory}/io.max",
                    f"{device} {_RATES[key]}={'max' if rate is None else rate}",
                )
            except OSError as error:
                raise refused_rate(key, path, rate or 0, error) from error

    def _limit(self, name: str, value: str) -> None:
        """Write a limit; without its file nobody asked for it (``require``), or the kernel has no
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

    def count(self) -> int | None:
        return number(f"{self.directory}/pids.current")

    def stats(self) -> Stats:
        cpu, events = table(f"{self.directory}/cpu.stat"), table(f"{self.directory}/memory.events")
        used, throttled = cpu.get("usage_usec"), cpu.get("throttled_usec")
        reads, writes = self._io()
        return Stats(
            memory_current=number(f"{self.directory}/memory.current"),
            memory_peak=number(f"{self.directory}/memory.peak"),
            memory_limit=self._limits.memory,
            cpu_seconds=None if used is None else used / 1e6,
            cpu_throttled_seconds=None if throttled is None else throttled / 1e6,
            pids_current=number(f"{self.directory}/pids.current"),
            pids_peak=number(f"{self.directory}/pids.peak"),
            oom_kills=events.get("oom_kill"),
            io_read_bytes=reads,
            io_write_bytes=writes,
        )

    def _io(self) -> tuple[int | None, int | None]:
        """Add up the lines ``MAJOR:MINOR rbytes=N wbytes=N ...``."""
        try:
            words = read(f"{self.directory}/io.stat").split()
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

    def files_bytes(self) -> int:
        return table(f"{self.directory}/memory.stat").get("file", 0)

    def oom_kills(self) -> int:
        return table(f"{self.directory}/memory.events").get("oom_kill", 0)

    def pids(self) -> tuple[int, ...]:
        return members(self.directory)

    def freeze(self, seconds: float = PATIENCE) -> None:
        write(f"{self.directory}/cgroup.freeze", 1)
        try:
            self._await("frozen", 1, seconds)
        except TimeoutError:
            self.thaw()
            raise

    def thaw(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # removed: as good as thawed
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
                self._limit("cpu.max", _quota(self._limits.cpus))  # which is none where it is gone

    def is_frozen(self) -> bool:
        return bool(number(f"{self.directory}/cgroup.freeze"))

    def _await(self, event: str, value: int, seconds: float) -> None:
        """Wait for a line of cgroup.events; the kernel reports a change as POLLPRI."""
        deadline, path = time.monotonic() + seconds, f"{self.directory}/cgroup.events"
        with open(path, "rb", buffering=0) as file:
            poll = select.poll()
            poll.register(file, select.POLLPRI)
            while f"{event} {value}\n".encode() not in os.pread(file.fileno(), 4096, 0):
                if time.monotonic() > deadline:
                    raise TimeoutError(errno.ETIMEDOUT, f"{event} does not become {value}", path)
                poll.poll(max(1, int((deadline - time.monotonic()) * 1000)))

    def kill(self, seconds: float = PATIENCE) -> None:
        try:
            write(f"{self.directory}/cgroup.kill", 1)
        except FileNotFoundError:  # before Linux 5.14
            kill_members(self.pids, seconds)
        self._await("populated", 0, seconds)

    def held(self) -> int:
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self, seconds: float = PATIENCE) -> None:
        self.close()
        remove_directory(self.directory, seconds)


def _stalled(path: str) -> float | None:
    """Return the seconds of ``some avg10=...

    total=MICROSECONDS`` (accounting/psi.rst); None where the kernel does not count them.
    """
    try:
        return int(read(path).partition("total=")[2].split()[0]) / 1e6
    except (
        OSError
    ):  # no such file, or EOPNOTSUPP: built without CONFIG_PSI, or not booted with psi=1
        return None


def _quota(cpus: float | None) -> str:
    """Return a limit on CPU time as cpu.max has it: microseconds of each period."""
    return f"{'max' if cpus is None else round(cpus * PERIOD)} {PERIOD}"


def _changes(before: CgroupLimits, limits: CgroupLimits, overhead: int) -> dict[str, str]:
    """Return the files that have to be written, in an order that never asks for more than is
    there.
    """
    pids = None if limits.pids_limit is None else limits.pids_limit + overhead
    changes = {"pids.max": "max" if pids is None else str(pids)}
    if limits.cpuset != before.cpuset:
        changes["cpuset.cpus"] = limits.cpuset or "\n"
    if limits.cpus != before.cpus:
        changes["cpu.max"] = _quota(limits.cpus)
    if (limits.memory, limits.swap_limit) != (before.memory, before.swap_limit):
        swap = (
            None
            if limits.swap_limit is None or limits.memory is None
            else limits.swap_limit - limits.memory
        )
        changes["memory.swap.max"] = "max" if swap is None else str(swap)
        changes["memory.max"] = "max" if limits.memory is None else str(limits.memory)
    if limits.memory_high != before.memory_high:
        changes["memory.high"] = "max" if limits.memory_high is None else str(limits.memory_high)
    return changes
