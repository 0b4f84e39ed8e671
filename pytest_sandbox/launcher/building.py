"""How a container is built: the steps from a plan to a program, at whose end stands PID 1.

The program runs in a child of the launcher that is in the container's new namespaces but not yet in its root; everything it needs from
the host is looked up by :class:`Host` before.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import struct
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from pytest_sandbox.launcher import footing
from pytest_sandbox.launcher.plan import SHELF
from pytest_sandbox.linux import elf, mounts, namespaces, network, overlay, process, userns
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.program import Program, Result, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pytest_sandbox.launcher.plan import Plan
    from pytest_sandbox.linux.mounts import Mounted

__all__ = ["Building", "Host"]

_NAMESPACES = sc.CLONE_NEWNS | sc.CLONE_NEWPID | sc.CLONE_NEWIPC | sc.CLONE_NEWUTS
_ROOT = f"{mounts.STAGE}/root"
_OWN = ("proc", "sys", "dev")
_NAME = b"pytest-sandbox-init"


class Host:
    """What every container of a launcher is made from; ``root`` is looked at again when something is mounted."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.init = elf.init_fd()
        self.launcher = os.pidfd_open(os.getpid())
        try:
            self.user = namespaces.make_user_namespace()
        except OSError:  # no user namespaces here: the payloads keep docker's default protection, which needs none
            self.user = -1
        self.is_root = userns.is_initial()
        self.rooted = -1 if self.is_root or self.user < 0 else namespaces.make_user_namespace(rooted=True)
        self.look()

    def user_of(self, plan: Plan) -> int:
        """Return the payloads' user namespace: who is not root is root in an image, whose files it owns, and itself on its host's root."""
        return self.rooted if self.rooted >= 0 and not plan.is_on_host else self.user

    def look(self) -> None:
        """Find what there is on the host's root, and try which of it can be below an overlay."""
        found = footing.find(self._folder)
        self.root = replace(found, below=tuple(_tried(found.below, found.options)))

    def points(self) -> list[tuple[str, str]]:
        """Return where the overlays above the root lie, and on what."""
        return [(entry.point, entry.lower) for entry in self.root.below]


def _tried(entries: Iterable[Mounted], options: tuple[str, ...]) -> Iterator[Mounted]:
    """Try all entries but those that have gone away since they were found: other tools' mounts come and go."""
    for entry in entries:
        with suppress(FileNotFoundError, NotADirectoryError):
            yield _tried_one(entry, options)


def _tried_one(entry: Mounted, options: tuple[str, ...]) -> Mounted:
    """Find out what an entry is: a file, a file system that an overlay may lie on, or one that may not (vfat, a third overlay)."""
    if not stat.S_ISDIR(os.stat(entry.point).st_mode):
        return replace(entry, is_folder=False, below_overlay=False)
    if entry.flags & sc.MS_RDONLY:
        return replace(entry, below_overlay=False)
    program, step, stage = Program(), "try", mounts.STAGE
    mounts.add_private(program, step)
    program.mount(step, b"tmpfs", stage.encode(), b"tmpfs", 0)
    overlay.add_layer(program, step, f"{stage}/0", overlay.Like(entry.point))
    overlay.add_overlay(program, step, [entry.lower], f"{stage}/0", entry.point, options=options)
    pid, pidfd = program.spawn(sc.CLONE_NEWNS)
    os.close(pidfd)
    os.waitpid(pid, 0)
    return replace(entry, below_overlay=program.failure() is None)


class Building:
    """One container's program; each step is a method, in the order of ``_steps``."""

    def __init__(self, plan: Plan, host: Host, *, hostname: str, joins: tuple[str, ...], shelved: dict[str, int]) -> None:
        self.plan = plan
        self.shelved = shelved
        self.host = host
        self.hostname = hostname
        self.joins = joins
        self.network = -1
        self.program = Program()
        self._groups: list[Result] = []
        self._sources: list[Result] = []
        self._layer = self._tree = self._last = Result(0)

    def build(self, cgroup: int = -1) -> tuple[int, int, int, int]:
        """Make the container; returns its init's number and pidfd, and two descriptors of its writable layer: its folder, a copy of its mount.

        ``cgroup`` is the descriptor of a version 2 group to begin in. Raises :class:`OSError` for a system call that failed, whose
        ``step`` is an attribute.
        """
        try:
            if self.plan.own_network and self.plan.user_namespace:
                self.network = network.make_network(self.host.user_of(self.plan))
            for step in self._steps():
                step()
            return self._spawn(cgroup)
        finally:
            if self.network >= 0:
                os.close(self.network)

    def _spawn(self, cgroup: int) -> tuple[int, int, int, int]:
        pid, pidfd = self.program.spawn(_NAMESPACES | sc.CLONE_FILES, cgroup=cgroup)
        failure = self.program.failure()
        if failure is None and not self.program.ended_early(self._last):
            return pid, pidfd, self.program[self._layer], self.program[self._tree]
        os.waitpid(pid, 0)
        os.close(pidfd)
        self.program.close_leaks()
        error = failure.error() if failure else InterruptedError(errno.EINTR, "it was killed while it was built: is memory= enough?")
        error.step = failure.step if failure else "build"  # type: ignore[attr-defined]
        raise error

    def _steps(self) -> tuple[Callable[[], None], ...]:
        return (
            self._detach,
            self._enter_network,
            self._open_groups,
            self._open_volumes,
            self._make_layer,
            self._attach_shelved,
            self._mount_root,
            self._mount_below,
            self._mount_own,
            self._become_root,
            self._attach_volumes,
            self._make_root_read_only,
            self._name_host,
            self._join_groups,
            self._become_init,
        )

    def _detach(self) -> None:
        process.add_hidden_from_oom(self.program, "detach")
        process.add_raised_ulimits(self.program, self.plan.ulimits)
        mounts.add_private(self.program, "make private")

    def _enter_network(self) -> None:
        if self.network >= 0:
            self.program.add("enter network", "setns", self.network, sc.CLONE_NEWNET)
        elif self.plan.own_network:
            network.add_network(self.program, "enter network")

    def _open_groups(self) -> None:
        """Open what is written to join: the paths are gone once the root has changed."""
        self._groups = [self.program.open("open groups", os.fsencode(path), os.O_WRONLY) for path in self.joins]

    def _open_volumes(self) -> None:
        """Take a detached copy of each host folder now, to be attached when links resolve inside."""
        flags = sc.OPEN_TREE_CLONE | sc.OPEN_TREE_CLOEXEC | sc.AT_RECURSIVE
        self._sources = [
            self.program.add("open volumes", "open_tree", -100, os.fsencode(source), flags) for source, _target, _ro in self.plan.volumes
        ]

    def _make_layer(self) -> None:
        """Mount the file system of the writable layer, or bind its folder."""
        step, stage = "make layer", mounts.STAGE.encode()
        if self.plan.layer_device is not None:
            self.program.mount(step, os.fsencode(self.plan.layer_device), stage, b"ext4", sc.MS_NODEV)
        elif self.plan.layer_folder is not None:
            mounts.add_bind(self.program, step, self.plan.layer_folder, mounts.STAGE)
        else:
            size = b"size=%d," % self.plan.disk if self.plan.disk is not None else b""
            self.program.mount(step, b"tmpfs", stage, b"tmpfs", sc.MS_NODEV, size + b"mode=700")
        self.program.add(step, "mkdirat", -1, _ROOT.encode(), 0o755, go_on=True)
        self._layer = self.program.open(step, stage, os.O_RDONLY | os.O_DIRECTORY)
        self._tree = self.program.open_mount(step, stage)

    def _attach_shelved(self) -> None:
        """Bring the committed layers that this container lies on to where overlays find them."""
        step = "attach committed layers"
        for key, fd in self.shelved.items():
            target = f"{mounts.STAGE}/shelf-{key}".encode()
            self.program.add(step, "mkdirat", -1, target, 0o700)
            self.program.add(step, "move_mount", fd, b"", -100, target, sc.MOVE_MOUNT_F_EMPTY_PATH)

    def _above(self, point: str) -> list[str]:
        """Return what lies directly below the writable layer of an overlay, topmost first."""
        return [place for at, place in self.plan.above if at == point]

    def _staged(self, place: str) -> str:
        """Return the path of a lower folder while the container is built."""
        return place.replace(SHELF, f"{mounts.STAGE}/shelf-", 1) if place.startswith(SHELF) else place

    def _like(self, place: str) -> overlay.Like:
        """Return what a layer above this place is to look like, as this process reaches it."""
        if not place.startswith(SHELF):
            return overlay.Like(place)
        key, _, path = place.removeprefix(SHELF).partition("/")
        return overlay.Like(path, self.shelved[key])

    def _mount_root(self) -> None:
        step, lower = "mount root", [self.host.root.root] if self.plan.is_on_host else list(self.plan.lower)
        missing = [name for name in _OWN if not _is_folder(lower, name)]
        if missing:  # a root without them gets them below its writable layer, so that they are no change of the test's
            for folder in ("", *(f"/{name}" for name in missing)):
                self.program.add(step, "mkdirat", -1, f"{mounts.STAGE}/base{folder}".encode(), 0o755)
            lower.append(f"{mounts.STAGE}/base")
        self._overlay(step, lower, 0, "", sc.MS_NODEV, like=self.plan.lower[0])

    def _overlay(self, step: str, lower: list[str], number: int, point: str, flags: int, *, like: str) -> None:
        above = self._above(point)
        lower = [*map(self._staged, above), *lower]
        options = list(self.host.root.options)
        if self.plan.layer_folder is not None:
            options.append("volatile")  # nothing of it has to survive a crash of the machine, so no sync is worth its time
        overlay.add_layer(self.program, step, f"{mounts.STAGE}/{number}", self._like([*above, like][0]))
        overlay.add_overlay(self.program, step, lower, f"{mounts.STAGE}/{number}", _ROOT + point, flags=flags, options=options)

    def _mount_below(self) -> None:
        """Lay a writable layer over every real file system on the host's root, or over the host's folders in an image."""
        step = "mount below"
        for number, entry in enumerate(self.host.root.below if self.plan.is_on_host else (), 1):
            if entry.below_overlay:
                self._overlay(step, [entry.lower], number, entry.point, entry.flags | sc.MS_NODEV, like=entry.point)
            else:  # a file, or a file system that cannot be below an overlay: seen, and never written
                mounts.add_bind(self.program, step, entry.point, _ROOT + entry.point, flags=entry.flags | sc.MS_RDONLY | sc.MS_NODEV)
        for number, folder in enumerate(self.plan.folders, 1000):
            self._make_folders(step, _ROOT, folder)
            self._overlay(step, [folder], number, folder, sc.MS_NODEV, like=folder)
        for number, (path, *lower) in enumerate(self.plan.scratch, 2000):
            self._make_folders(step, _ROOT, path)
            self._make_folders(step, mounts.STAGE, "/empty")
            below = [*lower, f"{mounts.STAGE}/empty"]
            self._overlay(step, below, number, path, sc.MS_NODEV, like=[*lower, "/usr"][0])

    def _make_folders(self, step: str, root: str, folder: str) -> None:
        """Make a folder and those above it; what is wrong with them is found out by who needs them."""
        parts = folder.strip("/").split("/")
        for end in range(1, len(parts) + 1):
            self.program.add(step, "mkdirat", -1, os.fsencode(f"{root}/{'/'.join(parts[:end])}"), 0o755, go_on=True)

    def _mount_own(self) -> None:
        own_sys = self.host.is_root or self.plan.own_network
        self.program.extend(_own_mounts(self.plan.shm_size, self.plan.protected, own_sys, self.host.root.tty_group))

    def _become_root(self) -> None:
        mounts.add_become_root(self.program, "become root", _ROOT)

    def _attach_volumes(self) -> None:
        """Attach what was taken; from here on every name is the container's, and no link in it leads out."""
        step = "attach volumes"
        for fd, (source, target, read_only) in zip(self._sources, self.plan.volumes, strict=True):
            self._make_mount_point(step, target, is_folder=os.path.isdir(source))
            attributes = sc.MOUNT_ATTR_NODEV | sc.MOUNT_ATTR_NOSUID | (sc.MOUNT_ATTR_RDONLY if read_only else 0)
            self.program.add(
                step, "mount_setattr", fd, b"", sc.AT_EMPTY_PATH | sc.AT_RECURSIVE, sc.mount_attributes(attributes), sc.MOUNT_ATTR_SIZE
            )
            how = sc.open_how(os.O_PATH, sc.RESOLVE_NO_MAGICLINKS)
            point = self.program.add(step, "openat2", -100, os.fsencode(target), how, len(how))
            flags = sc.MOVE_MOUNT_F_EMPTY_PATH | sc.MOVE_MOUNT_T_EMPTY_PATH
            self.program.add(step, "move_mount", fd, b"", point, b"", flags)
            for one in (fd, point):
                self.program.close(step, one)

    def _make_mount_point(self, step: str, target: str, *, is_folder: bool) -> None:
        self._make_folders(step, "", target if is_folder else os.path.dirname(target))
        if not is_folder:
            self.program.add(step, "mknodat", -1, os.fsencode(target), stat.S_IFREG | 0o644, 0, go_on=True)

    def _make_root_read_only(self) -> None:
        if not self.plan.read_only:
            return
        step = "make root read only"
        mounts.add_remount(self.program, step, "/", sc.MS_RDONLY | sc.MS_NODEV)
        for entry in self.host.root.below if self.plan.is_on_host else ():
            mounts.add_remount(self.program, step, entry.point, sc.MS_RDONLY | sc.MS_NODEV | entry.flags)

    def _name_host(self) -> None:
        name = self.hostname.encode()
        self.program.add("name host", "sethostname", name, len(name))

    def _join_groups(self) -> None:
        step = "join groups"
        for fd in self._groups:
            self.program.add(step, "write", fd, b"0", 1)
            self.program.close(step, fd)
        self.program.add(step, "unshare", sc.CLONE_NEWCGROUP)

    def _become_init(self) -> None:
        """Execute what sleeps as PID 1; it dies with the launcher, and the kernel reaps for it."""
        step = "become init"
        self.program.reap_by_kernel(step)
        self.program.restore_signals(step)
        self.program.add(step, "prctl", sc.PR_SET_PDEATHSIG, signal.SIGKILL)
        # Where the launcher has died meanwhile, nobody sends that signal any more: end here.
        ended = struct.pack("=ihh", self.host.launcher, select.POLLIN, 0)  # struct pollfd
        self.program.add(step, "ppoll", ended, 1, bytes(16), None, 0, stop_if_positive=True)
        self._last = self.program.add(step, "execveat", self.host.init, b"", Table((_NAME, 0)), Table((0,)), sc.AT_EMPTY_PATH)


@cache
def _own_mounts(shm_size: int, protected: bool, own_sys: bool, tty_group: bool) -> Program:
    """Return the file systems that every container has of its own; half of all its calls, so they are put together once."""
    program, step = Program(), "mount own"
    mounts.add_dev(program, step, _ROOT, shm_size, tty_group=tty_group)
    mounts.add_proc(program, step, _ROOT, protected=protected)
    mounts.add_sys(program, step, _ROOT, protected=protected, own=own_sys)
    return program


def _is_folder(lower: list[str], name: str) -> bool:
    """Whether the root has a folder of this name; NotADirectoryError where it has something else in its place."""
    for folder in lower:
        try:
            mode = os.lstat(os.path.join(folder, name)).st_mode
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(mode):
            error = NotADirectoryError(errno.ENOTDIR, "the root file system has something else in the place of a folder", f"/{name}")
            error.step = "mount root"  # type: ignore[attr-defined]
            raise error
        return True
    return False
