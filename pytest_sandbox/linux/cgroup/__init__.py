"""Control groups: one small interface over cgroup v1 and v2.

``Hierarchy.find()`` -> ``session(name)``, one directory for each launcher -> ``create(name)``, one
:class:`Group` for each container. A session's cgroups are locked (flock(2)) as long as its launcher
lives. The lock belongs to the directory itself, which is the same in every mount, PID, user and
cgroup namespace and in every chroot, so a cleanup anywhere can tell whether their owner is alive.
The classes here are also the third version: a host that gives no group at all has groups that hold
nothing, know nothing and limit nothing, and :meth:`Hierarchy.require` refuses every limit that was
asked for.

Sources: Documentation/admin-guide/cgroup-v1/*.rst and cgroup-v2.rst of the kernel, cgroups(7).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import UnsupportedError
from pytest_sandbox.linux import file_lock, mountinfo
from pytest_sandbox.linux.cgroup_limits import CgroupLimits
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.outcome import Stats
from pytest_sandbox.settings import DEVICE_RATES, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

__all__ = [
    "LEAF",
    "PREFIX",
    "SCOPE",
    "Group",
    "Hierarchy",
    "Mount",
    "Session",
    "destroy",
    "parse_mounts",
    "parse_own",
    "remove_unowned",
]

#: A session's directory is this and the session's name, in every hierarchy.
PREFIX = "pytest-sandbox-"
#: Where v2 puts the processes that were in a group which has to become an inner one.
LEAF = "pytest-sandbox.leaf"
#: A scope that the user's systemd manager made for us is named so, and ours to make groups in.
SCOPE = "run-pytest-sandbox-"
#: CPU quotas are per this many microseconds, the kernel's default.
PERIOD = 100_000
PATIENCE = 10.0
_TRIES = 100

#: Controllers of v1 that are of use here; what else stands among a mount's options is not one.
KNOWN = frozenset({"memory", "cpu", "cpuacct", "cpuset", "pids", "blkio", "freezer"})
NO_GROUPS = "run where /sys/fs/cgroup is mounted (an outer container: start it with --privileged)."

#: The controller that each limit needs, by its name in version 2.
_NEEDS = {
    **dict.fromkeys(("memory", "memory_swap", "memory_high"), "memory"),
    "cpus": "cpu",
    "cpuset": "cpuset",
    "pids_limit": "pids",
    **dict.fromkeys(DEVICE_RATES, "io"),
}
_DEFAULTS = Settings()
UNLIMITED = CgroupLimits()


def read(path: str) -> str:
    """Return the text of a file of the kernel's; signals are deferred, so that an exception does
    not lose the descriptor.
    """
    with Deferred():
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            pieces = []
            while piece := os.read(fd, 65536):
                pieces.append(piece)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
        finally:
            os.close(fd)
    return os.fsdecode(b"".join(pieces))


def write(path: str, text: object) -> None:
    """Write to a file of the kernel's in one go, with signals deferred."""
    with Deferred():
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(text).encode())
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror} for {str(text)!r}", path) from None
        finally:
            os.close(fd)


def table(path: str) -> dict[str, int]:
    """Read a flat keyed file; empty where there is none."""
    try:
        lines = read(path).splitlines()
    except FileNotFoundError:
        return {}
    return {name: int(number) for name, number in (line.split() for line in lines)}


def number(path: str) -> int | None:
    """Read a file of one number; None where there is none, or no limit."""
    try:
        text = read(path).strip()
    except FileNotFoundError:
        return None
    return int(text) if text.isdigit() else None


def device_number(path: str) -> str:
    """Return ``MAJOR:MINOR`` of a block device, as groups name it."""
    number = os.stat(path).st_rdev
    return f"{os.major(number)}:{os.minor(number)}"


def refused_rate(key: str, path: str, rate: int, error: OSError) -> UnsupportedError:
    """Return the error for a limit on a device that the kernel does not take."""
    remedies = {
        errno.ENODEV: "It may be a partition, which has no queue of its own: name the whole disk.",
        errno.ENOENT: "The kernel throttles no devices: use one with CONFIG_BLK_DEV_THROTTLING.",
    }
    return UnsupportedError(
        f'{key}=["{path}:{rate}"]',
        remedies.get(error.errno or 0, f"The kernel says: {error.strerror}."),
    )


def members(directory: str) -> tuple[int, ...]:
    """Return the processes in a directory; those of an outer PID namespace, which read as 0, are
    not ours to name.
    """
    try:
        return tuple(pid for pid in map(int, read(f"{directory}/cgroup.procs").split()) if pid)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENODEV}:  # the directory is gone, or going
            return ()
        raise


def kill_members(pids: Callable[[], Iterable[int]], seconds: float = PATIENCE) -> None:
    """Kill until ``pids`` finds nobody; TimeoutError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while found := set(pids()):
        if time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, f"processes {sorted(found)} do not die")
        opened = {pid: fd for pid in found if (fd := _pidfd(pid)) is not None}
        # A number may have passed to a stranger before its pidfd was opened; a stranger is not in
        # the group.
        still = set(pids())
        for pid, fd in opened.items():
            if pid in still:
                _sigkill(fd)
        _await_one(opened.values())


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _sigkill(pidfd: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _await_one(pidfds: Collection[int]) -> None:
    """Wait until one of the processes has ended, and a moment for the kernel to take it off the
    group's list; close all.
    """
    poll = select.poll()
    for fd in pidfds:
        poll.register(fd, select.POLLIN)
    poll.poll(100)
    for fd in pidfds:
        os.close(fd)
    time.sleep(0.001)


def remove_directory(directory: str, seconds: float = PATIENCE) -> None:
    """Remove a group's directory; one that is gone is as good. A process is off the list a little
    after its parent saw it end.
    """
    deadline, pause = time.monotonic() + seconds, 0.0001
    while True:
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(pause)
            pause = min(pause * 2, 0.01)
        else:
            return


def below(directory: str) -> Iterator[str]:
    """Walk the directories of a hierarchy, the deepest first, and ``directory`` last."""
    try:
        with os.scandir(directory) as entries:
            inner = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, PermissionError):
        return
    for path in inner:
        yield from below(path)
    yield directory


def destroy(directories: Iterable[str], seconds: float = PATIENCE) -> None:
    """Kill all that lives below ``directories``, of whichever version and whoever made them, and
    remove them.
    """
    doomed = [path for directory in directories for path in below(directory)]
    for path in doomed:
        _halt_forks_and_thaw(path)
    kill_members(lambda: [pid for path in doomed for pid in members(path)], seconds)
    for path in doomed:
        remove_directory(path, seconds)


def make_owned(directory: str) -> int:
    """Create a session's cgroup, which only its user can open and so lock; return the descriptor
    whose lock says that it has an owner.

    Raises FileExistsError where it exists, OSError where it cannot be created or locked.
    """
    for _ in range(_TRIES):
        os.mkdir(directory, 0o700)
        with contextlib.suppress(FileNotFoundError):  # a cleanup locked it first, and removed it
            return file_lock.lock_directory(directory)
    raise FileNotFoundError(errno.ENOENT, "another process keeps removing it", directory)


def lock_unowned(directories: Iterable[str]) -> dict[str, int] | None:
    """Lock session's cgroups whose owner has ended, so that they can be removed; None where one of
    them has an owner.
    """
    held: dict[str, int] = {}
    for directory in directories:
        fd = file_lock.try_lock(directory)
        if fd is None and os.path.exists(directory):
            for other in held.values():
                os.close(other)
            return None
        if fd is not None:
            held[directory] = fd
    return held


def remove_unowned(directories: Iterable[str]) -> bool:
    """Remove the empty cgroups of a session whose owner has ended; return whether one was removed.
    What still has processes stays.
    """
    removed = False
    for directory in directories:
        fd = file_lock.try_lock(directory)
        if fd is not None:
            removed |= _remove_empty(directory)
            os.close(fd)
    return removed


def _remove_empty(directory: str) -> bool:
    removed = False
    for path in below(directory):
        with contextlib.suppress(OSError):
            os.rmdir(path)
            removed = True
    return removed


def _halt_forks_and_thaw(directory: str) -> None:
    """Let no fork outrun the killing, and wake what is frozen: on v1 it would not die."""
    for name, value in (("pids.max", "0"), ("freezer.state", "THAWED")):
        if os.path.exists(f"{directory}/{name}"):
            write(f"{directory}/{name}", value)


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount of a hierarchy: ``root`` is the group that appears at ``point``."""

    version: int
    root: str
    point: str
    controllers: frozenset[str]
    writable: bool

    def directory(self, group: str) -> str | None:
        """Return the directory of a group of /proc/self/cgroup, None where it lies outside of this
        mount.
        """
        root = self.root.rstrip("/")
        if group.startswith("/.."):  # outside of our cgroup namespace (cgroup_namespaces(7))
            return None
        if group != root and not group.startswith(f"{root}/"):
            return None
        return (self.point + group.removeprefix(root)).rstrip("/")


def parse_mounts(data: bytes) -> tuple[Mount, ...]:
    """Find the hierarchies in the content of /proc/PID/mountinfo."""
    mounts = []
    for entry in mountinfo.parse(data):
        if entry.fstype in {"cgroup", "cgroup2"}:
            is_first = entry.fstype == "cgroup"
            controllers = entry.super_options & KNOWN if is_first else frozenset()
            writable = "ro" not in entry.options | entry.super_options
            mounts.append(
                Mount(1 if is_first else 2, entry.root, entry.point, controllers, writable)
            )
    return tuple(mounts)


def parse_own(cgroup: str) -> dict[str, str]:
    """Read the text of /proc/PID/cgroup: the group by controller, v2's under the empty name
    (cgroups(7)).

    The name of a cgroup may hold every byte but a newline.
    """
    own = {}
    for line in filter(None, cgroup.split("\n")):
        _, controllers, group = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), group))
    return own


class Group:
    """The group of one container; this one holds nothing, and is what a host without usable groups
    gets.
    """

    def __init__(self, name: str, remedy: str = "") -> None:
        self.id = name
        self._remedy = remedy

    def joins(self) -> tuple[str, ...]:
        """Return the absolute paths to which a process of one thread writes "0" to enter."""
        return ()

    def fd(self) -> int:
        """Return a descriptor for CLONE_INTO_CGROUP, closed by :meth:`remove`; -1 where one enters
        by :meth:`joins` only.
        """
        return -1

    def apply(self, limits: CgroupLimits, *, overhead: int = 0) -> None:
        """Set memory, swap, cpus, cpuset, pids and the rates of devices to ``limits``, also where
        there are others and processes already.

        ``overhead`` processes of our own, such as init, are allowed beyond ``pids_limit``. Raises
        UnsupportedError where the kernel refuses, OSError where it fails.
        """

    def count(self) -> int | None:
        """Return how many tasks are in the group, dead ones that nobody has reaped among them; None
        where that is not kept.
        """
        return None

    def held(self) -> int:
        """Return the descriptor that this handle holds; -1 where it holds none."""
        return -1

    def close(self) -> None:
        """Let go of what this handle holds; the group stays."""

    def stats(self) -> Stats:
        """Return what the group has used; None for each figure that is not kept here."""
        return Stats(None, None, None, None, None, None, None, None, None, None)

    def pressure(self) -> dict[str, Any]:
        """Return the seconds in which a process of the group stood still for want of something, by
        the field of :class:`Stats`; version 2 counts them.
        """
        return {}

    def files_bytes(self) -> int:
        """Return how many of the bytes in memory are pages of files, those of a tmpfs among
        them.
        """
        return 0

    def oom_kills(self) -> int:
        """Return how many processes the kernel has killed here for memory."""
        return 0

    def pids(self) -> tuple[int, ...]:
        """Return the processes in the group, in the caller's PID namespace."""
        return ()

    def freeze(self, seconds: float = PATIENCE) -> None:  # noqa: ARG002 - those that freeze wait
        """Stop all processes, and return when they stand; TimeoutError after ``seconds``."""
        raise UnsupportedError("pause", self._remedy)

    def thaw(self) -> None:
        """Let the processes go on."""

    @contextlib.contextmanager
    def unthrottled(self) -> Iterator[None]:
        """Lift the limit on CPU time meanwhile: a process that was killed takes some to end."""
        yield

    def is_frozen(self) -> bool:
        """Whether the processes are stopped, also by the session's other end."""
        return False

    def kill(self, seconds: float = PATIENCE) -> None:
        """Kill all processes, frozen ones too, and return when there are none; TimeoutError after
        ``seconds``.
        """

    def remove(self, seconds: float = PATIENCE) -> None:
        """Remove the empty group; waits for the kernel to let go of the last process,
        OSError(EBUSY) after ``seconds``.
        """


class Session:
    """The parent of all groups of one launcher."""

    def __init__(self, name: str, directories: tuple[str, ...] = (), remedy: str = "") -> None:
        self.name = name
        self._remedy = remedy
        self.directories = directories
        """What a cleanup has to :func:`destroy` when the session has ended."""
        self.locks: list[int] = []
        """Descriptors whose locks say that the session lives: the launcher inherits them."""

    def create(self, name: str) -> Group:
        """Make a group without limits, to be joined."""
        return Group(name, self._remedy)

    # the container's word; those that limit need it
    def group(self, name: str, limits: CgroupLimits = UNLIMITED) -> Group:  # noqa: ARG002
        """Return a handle on a group that the session's other end has made, with the limits that it
        has given it.
        """
        return Group(name, self._remedy)

    def hand_over(self) -> None:
        """Close the descriptors of the locks in this process, which another one has inherited."""
        while self.locks:
            os.close(self.locks.pop())

    def close(self) -> None:
        """Kill what still lives in the session, and remove its groups and its directories."""
        destroy(self.directories)
        self.hand_over()


class Hierarchy:
    """Where this process's groups are, and which controllers obey us there."""

    version = 0
    controllers: frozenset[str] = frozenset()
    """The kernel's names (v2's ``io``, v1's ``blkio``, ``cpuacct``, ``freezer``) of what sessions
    can use.
    """
    names: Mapping[str, str] = {}
    """What this version calls a controller that version 2 calls otherwise."""

    @staticmethod
    def find(mounts_path: str = mountinfo.PATH, cgroup: str = "/proc/self/cgroup") -> Hierarchy:
        """Look where we are: v1 where it has controllers (also a hybrid host), else v2, else
        nothing.
        """
        from pytest_sandbox.linux.cgroup import v1, v2

        mounts, own = parse_mounts(mountinfo.read(mounts_path)), parse_own(read(cgroup))
        if any(mount.controllers & {"memory", "cpu", "pids"} for mount in mounts):
            return v1.HierarchyV1(mounts, own)
        unified = next((mount for mount in mounts if mount.version == 2), None)
        return v2.HierarchyV2(unified, own.get("", "/")) if unified else Hierarchy()

    def remedy(self, controller: str) -> str:
        """Say what would make ``controller`` obey."""
        return (
            f"No cgroup file system is mounted here, so {controller} cannot be limited: {NO_GROUPS}"
        )

    def require(self, settings: Settings) -> None:
        """Raise UnsupportedError for a limit that was asked for and cannot be enforced; defaults
        may be left out.
        """
        for key, name in _NEEDS.items():
            value, default = getattr(settings, key), getattr(_DEFAULTS, key)
            asked = value != default or (key in settings.given and value)
            if (
                asked
                and value is not None
                and (controller := self.names.get(name, name)) not in self.controllers
            ):
                raise UnsupportedError(f"{key}={value!r}", self.remedy(controller))

    def session(self, name: str) -> Session:
        """Make and lock the cgroup ``pytest-sandbox-NAME`` in every hierarchy that is used;
        FileExistsError where there is one.
        """
        return Session(name, remedy=self.remedy("freezer"))

    def attach(self, name: str) -> Session:
        """Return a handle on a session that another process has made."""
        return Session(name, remedy=self.remedy("freezer"))

    def roots(self) -> tuple[str, ...]:
        """Return the directories below which sessions of this host may be found."""
        return ()

    def sessions(self) -> Mapping[str, tuple[str, ...]]:
        """Find the sessions on this host, dead or alive, of every user and container: the name, and
        its cgroups.
        """
        found: dict[str, list[str]] = {}
        for root in self.roots():
            for path in below(root):
                name = os.path.basename(path)
                if name.startswith(PREFIX):
                    found.setdefault(name.removeprefix(PREFIX), []).append(path)
        return {name: tuple(directories) for name, directories in found.items()}
