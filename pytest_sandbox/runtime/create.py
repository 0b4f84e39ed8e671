"""How a container is built: the steps from a spec to a batch of calls, at whose end stands PID 1.

The batch runs in a child of the launcher that is in the container's new namespaces but not yet in
its root; everything it needs from the host is looked up by :class:`Host` before.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import struct
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

from pytest_sandbox.linux import (
    elf,
    file_mounts,
    mounts,
    namespaces,
    overlay,
    process,
    process_limits,
    rtnetlink,
    userns,
)
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.root_check import RootCheck
from pytest_sandbox.linux.syscall_batch import Result, SyscallBatch, Table
from pytest_sandbox.runtime import etc_files, host_mounts, privileges
from pytest_sandbox.runtime.spec import SHELF

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_sandbox.runtime.spec import Spec

__all__ = ["Building", "Host"]

_NAMESPACES = sc.CLONE_NEWNS | sc.CLONE_NEWPID | sc.CLONE_NEWIPC | sc.CLONE_NEWUTS
_ROOT = f"{mounts.STAGE}/root"
_OWN = ("proc", "sys", "dev")
_NAME = b"pytest-sandbox-init"


class Host:
    """What every container of a launcher is made from; ``root`` is looked at again when something
    is mounted.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.init = elf.init_fd()
        self.launcher = os.pidfd_open(os.getpid())
        self.is_root = userns.is_initial()
        if not self.is_root:
            privileges.bound_inotify()
        try:
            self.user = namespaces.make_user_namespace(owner=privileges.owner())
        except OSError:  # no user namespaces here: the payloads keep docker's default protection, which needs none
            self.user = -1
        self.rooted = (
            -1 if self.is_root or self.user < 0 else namespaces.make_user_namespace(rooted=True)
        )
        self.look()

    def user_of(self, spec: Spec) -> int:
        """Return the payloads' user namespace: who is not root is root in an image, whose files it
        owns, and itself on its host's root.
        """
        return self.rooted if self.rooted >= 0 and not spec.is_on_host else self.user

    def look(self) -> None:
        """Find what there is on the host's root, and try which of it can be below an overlay."""
        self.root = host_mounts.shown(privileges.find(self._directory))
        #: The point of the overlay that /etc lies in.
        self.generated_in = self._find_generated()

    def _find_generated(self) -> str | None:
        """Return the point of the overlay that /etc lies in; None where that is no directory in an
        overlay.
        """
        around = [
            entry
            for entry in self.root.below
            if f"{etc_files.DIRECTORY}/".startswith(f"{entry.point}/")
        ]
        innermost = max(around, key=lambda entry: len(entry.point), default=None)
        if innermost is not None and innermost.shown not in (mounts.WRITABLE, mounts.READ_ONLY):
            return None
        return (innermost.point if innermost else "") if _is_plain(["/"], "etc") else None

    def points(self) -> list[tuple[str, str]]:
        """Return where the overlays above the root lie, and on what."""
        return [(entry.point, entry.lower) for entry in self.root.below]


class Building:
    """One container's batch; each step is a method, in the order of ``_steps``."""

    def __init__(
        self,
        spec: Spec,
        host: Host,
        *,
        hostname: str,
        joins: tuple[str, ...],
        shelved: dict[str, int],
    ) -> None:
        self.spec = spec
        self.shelved = shelved
        self.host = host
        self.hostname = hostname
        self.joins = joins
        self.network = -1
        self.batch = SyscallBatch()
        self._has_base = False
        self._generated_in = host.generated_in if spec.is_on_host else _generated_in(spec.lower)
        self._generated_from = etc_files.sources(spec) if self._generated_in is not None else {}
        #: What the container is made from and may be replaced later: it is handed out only while
        #: this is current.
        self.seen = self._seen()
        self._groups: list[Result] = []
        self._sources: list[Result] = []
        self._layer = self._tree = self._last = self._made_root = Result(0)
        self._root_check: RootCheck | None = None

    def _seen(self) -> list[file_mounts.Stamp]:
        found = list(self._generated_from.values())
        if (
            not self.spec.is_on_host
        ):  # of an image all layers but the last one are the store's, which do not change
            return [file_mounts.stamp(self.spec.lower[-1], content=False), *found]
        for paths in self.host.root.copied.values():
            found += [
                file_mounts.stamp(path, content=True)
                for path in paths
                if path not in self._generated_from
            ]
        return found

    def build(self, cgroup: int = -1) -> tuple[int, int, int, int]:
        """Make the container; returns its init's number and pidfd, and two descriptors of its
        writable layer: its directory, a copy of its mount.

        ``cgroup`` is the descriptor of a version 2 group to begin in. Raises :class:`OSError` for a
        system call that failed, whose ``step`` is an attribute.
        """
        try:
            if self.spec.own_network and self.spec.user_namespace:
                self.network = rtnetlink.make_network(self.host.user_of(self.spec))
            for step in self._steps():
                step()
            return self._spawn(cgroup)
        finally:
            if self.network >= 0:
                os.close(self.network)

    def _spawn(self, cgroup: int) -> tuple[int, int, int, int]:
        pid, pidfd = self.batch.spawn(_NAMESPACES | sc.CLONE_FILES, cgroup=cgroup)
        failure = self.batch.failure()
        if failure is None and not self.batch.ended_early(self._last):
            self._verify_root(pid, pidfd)
            return pid, pidfd, self.batch[self._layer], self.batch[self._tree]
        os.waitpid(pid, 0)
        os.close(pidfd)
        self.batch.close_leaks()
        error = (
            failure.error()
            if failure
            else InterruptedError(
                errno.EINTR, "it was killed while it was built: is memory= enough?"
            )
        )
        error.step = failure.step if failure else "build"  # type: ignore[attr-defined]
        raise error

    def _verify_root(self, pid: int, pidfd: int) -> None:
        """Kill the container unless whoever enters it is in its overlay; init has executed nothing
        but itself.
        """
        if self._root_check is not None and self._root_check.is_right():
            return
        process.kill(pidfd, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)
        for result in (self._layer, self._tree):
            os.close(self.batch[result])
        error = OSError(errno.EXDEV, "who enters the container would not be on its root")
        error.step = "verify the root"  # type: ignore[attr-defined]
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
            self._check_root,
            self._name_host,
            self._join_groups,
            self._become_init,
        )

    def _detach(self) -> None:
        process_limits.add_oom_score_adj(self.batch, "detach")
        process_limits.add_raised_hard_limits(self.batch, self.spec.ulimits)
        mounts.add_private(self.batch, "make private")
        self.batch.add(
            "make private", "umask", 0
        )  # what is made has the mode that it is made with, whatever the caller's umask

    def _enter_network(self) -> None:
        if self.network >= 0:
            self.batch.add("enter network", "setns", self.network, sc.CLONE_NEWNET)
        elif self.spec.own_network:
            rtnetlink.add_network(self.batch, "enter network")

    def _open_groups(self) -> None:
        """Open what is written to join: the paths are gone once the root has changed."""
        self._groups = [
            self.batch.open("open groups", os.fsencode(path), os.O_WRONLY) for path in self.joins
        ]

    def _open_volumes(self) -> None:
        """Take a detached copy of each host directory now, to be attached when links resolve
        inside.
        """
        flags = sc.OPEN_TREE_CLONE | sc.OPEN_TREE_CLOEXEC | sc.AT_RECURSIVE
        self._sources = [
            self.batch.add("open volumes", "open_tree", -100, os.fsencode(source), flags)
            for source, _target, _ro in self.spec.volumes
        ]

    def _make_layer(self) -> None:
        """Mount the file system of the writable layer, or bind its directory."""
        step, stage = "make layer", mounts.STAGE.encode()
        if self.spec.layer_device is not None:
            self.batch.mount(step, os.fsencode(self.spec.layer_device), stage, b"ext4", sc.MS_NODEV)
        elif self.spec.layer_directory is not None:
            mounts.add_bind(self.batch, step, self.spec.layer_directory, mounts.STAGE)
        else:
            size = (
                b"," + mounts.tmpfs_options(self.spec.disk) if self.spec.disk is not None else b""
            )
            self.batch.mount(step, b"tmpfs", stage, b"tmpfs", sc.MS_NODEV, b"mode=700" + size)
        self.batch.add(step, "mkdirat", -1, _ROOT.encode(), 0o755, go_on=True)
        self._layer = self.batch.open(step, stage, os.O_RDONLY | os.O_DIRECTORY)
        self._tree = self.batch.open_mount(step, stage)

    def _attach_shelved(self) -> None:
        """Bring the committed layers that this container lies on to where overlays find them."""
        step = "attach committed layers"
        for key, fd in self.shelved.items():
            target = f"{mounts.STAGE}/shelf-{key}".encode()
            self.batch.add(step, "mkdirat", -1, target, 0o700)
            self.batch.add(step, "move_mount", fd, b"", -100, target, sc.MOVE_MOUNT_F_EMPTY_PATH)

    def _above(self, point: str) -> list[str]:
        """Return what lies directly below the writable layer of an overlay, topmost first."""
        return [place for at, place in self.spec.above if at == point]

    def _staged(self, place: str) -> str:
        """Return the path of a lower directory while the container is built."""
        return (
            place.replace(SHELF, f"{mounts.STAGE}/shelf-", 1) if place.startswith(SHELF) else place
        )

    def _like(self, place: str) -> overlay.Template:
        """Return what a layer above this place is to look like, as this process reaches it."""
        if not place.startswith(SHELF):
            return overlay.Template(place)
        key, _, path = place.removeprefix(SHELF).partition("/")
        return overlay.Template(path, self.shelved[key])

    def _mount_root(self) -> None:
        step, lower = (
            "mount root",
            [self.host.root.root] if self.spec.is_on_host else list(self.spec.lower),
        )
        missing = [name for name in _OWN if not _is_directory(lower, name)]
        # a root without them gets them below its writable layer, so that they are no change of the
        # test's
        if missing:
            for directory in ("", *(f"/{name}" for name in missing)):
                self.batch.add(
                    step, "mkdirat", -1, f"{mounts.STAGE}/base{directory}".encode(), 0o755
                )
            lower.append(f"{mounts.STAGE}/base")
        self._overlay(step, lower, 0, "", sc.MS_NODEV, like=self.spec.lower[0])

    def _overlay(
        self, step: str, lower: list[str], number: int, point: str, flags: int, *, like: str
    ) -> None:
        above = self._above(point)
        lower = [*map(self._staged, above), *self._nodes(step, number, point, lower), *lower]
        options = list(self.host.root.options)
        if flags & sc.MS_RDONLY:
            host_mounts.add_read_only_overlay(
                self.batch, step, lower, _ROOT + point, flags, options
            )
            return
        if self.spec.layer_directory is not None:
            options.append(
                "volatile"
            )  # nothing of it has to survive a crash of the machine, so no sync is worth its time
        overlay.add_layer(
            self.batch, step, f"{mounts.STAGE}/{number}", self._like([*above, like][0])
        )
        overlay.add_overlay(
            self.batch,
            step,
            lower,
            f"{mounts.STAGE}/{number}",
            _ROOT + point,
            flags=flags,
            options=options,
        )

    def _nodes(self, step: str, number: int, point: str, lower: list[str]) -> list[str]:
        """Make what is copied or generated for this overlay in a directory that lies on top of its
        other lower ones.
        """
        made = {node.path: node for node in self._copied(point)}
        if point == self._generated_in:
            made |= {
                node.path: node
                for node in etc_files.nodes_of(
                    self.spec, self.spec.hostname or self.hostname, point, self._generated_from
                )
            }
        if not made:
            return []
        directory = f"{self._nodes_base(step)}/nodes-{number}"
        file_mounts.add_nodes(
            self.batch, step, directory, made.values(), lambda parent: _status(lower, parent)
        )
        return [directory]

    def _nodes_base(self, step: str) -> str:
        """Return where lower layers are made: not in a directory of a file system that is a lower
        layer itself, which the kernel refuses.
        """
        if self.spec.layer_directory is None:
            return mounts.STAGE
        base = f"{mounts.STAGE}/nodes"
        if not self._has_base:
            self._has_base = True
            self.batch.add(step, "mkdirat", -1, base.encode(), 0o700)
            self.batch.mount(step, b"tmpfs", base.encode(), b"tmpfs", sc.MS_NODEV, b"mode=700")
        return base

    def _copied(self, point: str) -> list[file_mounts.Node]:
        paths = self.host.root.copied.get(point, ()) if self.spec.is_on_host else ()
        return [file_mounts.copy_of(path, point) for path in paths]

    def _mount_below(self) -> None:
        """Lay a writable layer over every real file system on the host's root, or over the host's
        directories in an image.
        """
        step = "mount below"
        for number, entry in enumerate(self.host.root.below if self.spec.is_on_host else (), 1):
            if not entry.is_mount and not os.path.exists(entry.point):
                # beside a mount, other programs' directories come and go, which nobody tells
                continue
            if entry.shown in (mounts.WRITABLE, mounts.READ_ONLY):
                self._overlay(
                    step,
                    [entry.lower],
                    number,
                    entry.point,
                    entry.flags | sc.MS_NODEV,
                    like=entry.point,
                )
            elif entry.shown == mounts.COVERED:
                mounts.add_cover(self.batch, step, _ROOT + entry.point)
            else:
                mounts.add_bind(
                    self.batch,
                    step,
                    entry.lower,
                    _ROOT + entry.point,
                    flags=entry.flags | sc.MS_RDONLY | sc.MS_NODEV,
                )
        for number, directory in enumerate(self.spec.directories, 1000):
            self._make_directories(step, _ROOT, directory)
            self._overlay(step, [directory], number, directory, sc.MS_NODEV, like=directory)
        for number, (path, *lower) in enumerate(self.spec.scratch, 2000):
            self._make_directories(step, _ROOT, path)
            self._make_directories(step, mounts.STAGE, "/empty")
            below = [*lower, f"{mounts.STAGE}/empty"]
            self._overlay(step, below, number, path, sc.MS_NODEV, like=[*lower, "/usr"][0])

    def _make_directories(self, step: str, root: str, directory: str) -> None:
        """Make a directory and those above it; what is wrong with them is found out by who needs
        them.
        """
        parts = directory.strip("/").split("/")
        for end in range(1, len(parts) + 1):
            self.batch.add(
                step,
                "mkdirat",
                -1,
                os.fsencode(f"{root}/{'/'.join(parts[:end])}"),
                0o755,
                go_on=True,
            )

    def _mount_own(self) -> None:
        own_sys = self.host.is_root or self.spec.own_network
        self.batch.extend(
            _own_mounts(self.spec.shm_size, self.spec.protected, own_sys, self.host.root.tty_group)
        )

    def _become_root(self) -> None:
        self._made_root = RootCheck.look_at(self.batch, "become root", _ROOT)
        mounts.add_pivot_root(self.batch, "become root", _ROOT)

    def _check_root(self) -> None:
        self._root_check = RootCheck.add(self.batch, "verify the root", self._made_root)

    def _attach_volumes(self) -> None:
        """Attach what was taken; from here on every name is the container's, and no link in it
        leads out.
        """
        step = "attach volumes"
        for fd, (source, target, read_only) in zip(self._sources, self.spec.volumes, strict=True):
            self._make_mount_point(step, target, is_directory=os.path.isdir(source))
            attributes = (
                sc.MOUNT_ATTR_NODEV
                | sc.MOUNT_ATTR_NOSUID
                | (sc.MOUNT_ATTR_RDONLY if read_only else 0)
            )
            self.batch.add(
                step,
                "mount_setattr",
                fd,
                b"",
                sc.AT_EMPTY_PATH | sc.AT_RECURSIVE,
                sc.mount_attributes(attributes),
                sc.MOUNT_ATTR_SIZE,
            )
            how = sc.open_how(os.O_PATH, sc.RESOLVE_NO_MAGICLINKS)
            point = self.batch.add(step, "openat2", -100, os.fsencode(target), how, len(how))
            flags = sc.MOVE_MOUNT_F_EMPTY_PATH | sc.MOVE_MOUNT_T_EMPTY_PATH
            self.batch.add(step, "move_mount", fd, b"", point, b"", flags)
            for one in (fd, point):
                self.batch.close(step, one)

    def _make_mount_point(self, step: str, target: str, *, is_directory: bool) -> None:
        self._make_directories(step, "", target if is_directory else os.path.dirname(target))
        if not is_directory:
            self.batch.add(
                step, "mknodat", -1, os.fsencode(target), stat.S_IFREG | 0o644, 0, go_on=True
            )

    def _make_root_read_only(self) -> None:
        if not self.spec.read_only:
            return
        step = "make root read only"
        mounts.add_remount(self.batch, step, "/", sc.MS_RDONLY | sc.MS_NODEV)
        for entry in self.host.root.below if self.spec.is_on_host else ():
            if entry.shown != mounts.WRITABLE:
                continue
            mounts.add_remount(
                self.batch, step, entry.point, sc.MS_RDONLY | sc.MS_NODEV | entry.flags
            )

    def _name_host(self) -> None:
        name = self.hostname.encode()
        self.batch.add("name host", "sethostname", name, len(name))

    def _join_groups(self) -> None:
        step = "join groups"
        for fd in self._groups:
            self.batch.add(step, "write", fd, b"0", 1)
            self.batch.close(step, fd)
        self.batch.add(step, "unshare", sc.CLONE_NEWCGROUP)

    def _become_init(self) -> None:
        """Execute what sleeps as PID 1; it dies with the launcher, and the kernel reaps for it."""
        step = "become init"
        self.batch.ignore_sigchld(step)
        self.batch.restore_signals(step)
        self.batch.add(step, "prctl", sc.PR_SET_PDEATHSIG, signal.SIGKILL)
        # Where the launcher has died meanwhile, nobody sends that signal any more: end here.
        ended = struct.pack("=ihh", self.host.launcher, select.POLLIN, 0)  # struct pollfd
        self.batch.add(step, "ppoll", ended, 1, bytes(16), None, 0, stop_if_positive=True)
        self._last = self.batch.add(
            step, "execveat", self.host.init, b"", Table((_NAME, 0)), Table((0,)), sc.AT_EMPTY_PATH
        )


@cache
def _own_mounts(shm_size: int, protected: bool, own_sys: bool, tty_group: bool) -> SyscallBatch:
    """Return the file systems that every container has of its own; half of all its calls, so they
    are put together once.
    """
    batch, step = SyscallBatch(), "mount own"
    mounts.add_dev(batch, step, _ROOT, shm_size, tty_group=tty_group)
    mounts.add_proc(batch, step, _ROOT, protected=protected)
    mounts.add_sys(batch, step, _ROOT, protected=protected, own=own_sys)
    return batch


def _generated_in(lower: Sequence[str]) -> str | None:
    """Return the point of an image's overlay that /etc lies in; None where that is no directory: no
    link of an image is followed.
    """
    return "" if _is_plain(lower, "etc") else None


def _is_plain(lower: Sequence[str], name: str) -> bool:
    """Return whether a name is a directory in the topmost layer that has it, or in none."""
    for directory in lower:
        with suppress(FileNotFoundError):
            return stat.S_ISDIR(os.lstat(os.path.join(directory, name)).st_mode)
    return True


def _status(lower: Sequence[str], path: str) -> os.stat_result:
    """Return what a directory looks like in the topmost layer that has it, or what / does."""
    for directory in lower:
        with suppress(FileNotFoundError, NotADirectoryError):
            return os.stat(os.path.join(directory, path))
    return os.stat("/")


def _is_directory(lower: list[str], name: str) -> bool:
    """Whether the root has a directory of this name; NotADirectoryError where it has something else
    in its place.
    """
    for directory in lower:
        try:
            mode = os.lstat(os.path.join(directory, name)).st_mode
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(mode):
            error = NotADirectoryError(
                errno.ENOTDIR,
                "the root file system has something else in the place of a directory",
                f"/{name}",
            )
            error.step = "mount root"  # type: ignore[attr-defined]
            raise error
        return True
    return False
