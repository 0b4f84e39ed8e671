"""Container init, PID 1: builds what its plan says, locks itself down to the payload's profile, then starts, reaps and reports.

It runs in a fork of the launcher. Everything it needs is imported before the root changes, and it never looks a name up through a library
of the container's (nss, codecs): what lies inside is not trusted.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from pytest_sandbox.channel import Channel, Message, close_all
from pytest_sandbox.launcher import users
from pytest_sandbox.launcher.plan import SHELF
from pytest_sandbox.launcher.profile import lock_down
from pytest_sandbox.linux import capabilities, mounts, network, overlay, process
from pytest_sandbox.linux import syscall as sc

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.launcher.plan import Plan
    from pytest_sandbox.linux.host_root import HostRoot

__all__ = ["Building", "run_init"]

STAGE = mounts.STAGE
_ROOT = f"{STAGE}/root"


class Building:
    """The steps from a fresh fork to a locked-down init; each is a method, in the order of ``steps``."""

    def __init__(
        self, plan: Plan, *, joins: tuple[str, ...], network_fd: int, user_fd: int, host: HostRoot, shelved: dict[str, int]
    ) -> None:
        self.plan = plan
        self.joins = joins
        self.network_fd = network_fd
        self.user_fd = user_fd
        self.host = host
        self.shelved = shelved
        self.layer = self.tree = -1
        self.sources: list[int] = []
        self.groups: list[int] = []

    def steps(self) -> list[Callable[[], None]]:
        """Return what has to be done, in order."""
        return [
            mounts.make_private,
            self.enter_network,
            self.open_groups,
            self.open_volumes,
            self.make_layer,
            self.attach_shelved,
            self.mount_root,
            self.mount_below,
            self.mount_own,
            self.become_root,
            self.attach_volumes,
            self.make_root_read_only,
            self.name_host,
            self.raise_ulimits,
            self.join_groups,
            self.enter_user_namespace,
            self.lock_down,
        ]

    def enter_network(self) -> None:
        if self.plan.own_network:
            if self.network_fd >= 0:
                sc.setns(self.network_fd, sc.CLONE_NEWNET)
            else:
                network.make_network()

    def open_groups(self) -> None:
        """Open what is written to join: the paths are gone once the root has changed."""
        self.groups = [os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in self.joins]

    def open_volumes(self) -> None:
        """Take a detached copy of each host folder now, to be attached when links resolve inside."""
        for source, _target, _read_only in self.plan.volumes:
            self.sources.append(sc.open_tree(source, sc.OPEN_TREE_CLONE | sc.AT_RECURSIVE))

    def make_layer(self) -> None:
        """Mount the file system of the writable layer, or bind its folder."""
        if self.plan.layer_device is not None:
            sc.mount(self.plan.layer_device, STAGE, "ext4", sc.MS_NODEV)
        elif self.plan.layer_folder is not None:
            mounts.bind(self.plan.layer_folder, STAGE)
        else:
            size = f"size={self.plan.disk}," if self.plan.disk is not None else ""
            sc.mount("tmpfs", STAGE, "tmpfs", sc.MS_NODEV, f"{size}mode=700")
        os.mkdir(_ROOT)
        self.layer = os.open(STAGE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.tree = sc.open_tree(STAGE, sc.OPEN_TREE_CLONE)

    def attach_shelved(self) -> None:
        """Bring the committed layers that this container lies on to where overlays find them."""
        for key, fd in self.shelved.items():
            os.mkdir(f"{STAGE}/shelf-{key}")
            sc.move_mount(fd, f"{STAGE}/shelf-{key}")
            os.close(fd)

    def _above(self, point: str) -> list[str]:
        """Return what lies directly below the writable layer of an overlay, topmost first."""
        return [
            place.replace(SHELF, f"{STAGE}/shelf-", 1) if place.startswith(SHELF) else place for at, place in self.plan.above if at == point
        ]

    def mount_root(self) -> None:
        above = self._above("")
        lower = [*above, *([self.host.root] if self.plan.lower == ("/",) else self.plan.lower)]
        missing = [name for name in ("proc", "sys", "dev") if not any(os.path.lexists(f"{folder}/{name}") for folder in lower)]
        for name in missing:  # a root without them gets them below its writable layer, so that they are no change of the test's
            os.makedirs(f"{STAGE}/base/{name}")
        if missing:
            lower.insert(0, f"{STAGE}/base")
        self._make_layer(f"{STAGE}/0", [*above, *self.plan.lower][0], "")
        self._overlay(lower, f"{STAGE}/0", _ROOT, flags=sc.MS_NODEV)
        for name in ("proc", "sys", "dev"):
            if not stat.S_ISDIR(os.lstat(f"{_ROOT}/{name}").st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "the root file system has something else in the place of a folder", f"/{name}")

    def _make_layer(self, layer: str, like: str, point: str) -> None:
        overlay.make_layer(layer, like)
        for kept_point, folder in self.plan.kept:
            if kept_point == point:
                from pytest_sandbox.linux.copying import copy_tree

                os.rmdir(f"{layer}/upper")
                with_kept = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                copy_tree(with_kept, f"{layer}/upper")
                os.close(with_kept)

    def _overlay(self, lower: list[str], layer: str, target: str, *, flags: int) -> None:
        options = list(self.host.options)
        if self.plan.layer_folder is not None:
            options.append("volatile")  # nothing of it has to survive a crash of the machine, so no sync is worth its time
        overlay.mount_overlay(lower, layer, target, flags=flags, options=options)

    def mount_below(self) -> None:
        """Lay a writable layer over every real file system on the host's root, or over the host's folders in an image."""
        if self.plan.lower == ("/",):
            for number, entry in enumerate(self.host.below, 1):
                self._mount_real(entry, f"{STAGE}/{number}")
        for number, folder in enumerate(self.plan.folders, 1000):
            os.makedirs(_ROOT + folder, exist_ok=True)
            self._make_layer(f"{STAGE}/{number}", folder, folder)
            self._overlay([folder], f"{STAGE}/{number}", _ROOT + folder, flags=sc.MS_NODEV)

    def _mount_real(self, entry: mounts.Mounted, layer: str) -> None:
        target = _ROOT + entry.point
        if not os.path.isdir(entry.point):
            mounts.bind(entry.point, target, flags=entry.flags | sc.MS_RDONLY | sc.MS_NODEV)
            return
        if not entry.flags & sc.MS_RDONLY:
            try:
                above = self._above(entry.point)
                self._make_layer(layer, [*above, entry.point][0], entry.point)
                self._overlay([*above, entry.lower], layer, target, flags=entry.flags | sc.MS_NODEV)
            except OSError:  # a file system that cannot be below an overlay (vfat, a third overlay): seen, and never written
                pass
            else:
                return
        mounts.bind(entry.point, target, flags=entry.flags | sc.MS_RDONLY | sc.MS_NODEV)

    def mount_own(self) -> None:
        mounts.mount_dev(_ROOT, self.plan.shm_size, tty_group=self.host.tty_group)
        mounts.mount_proc(_ROOT, protected=self.plan.protected)
        mounts.mount_sys(_ROOT, protected=self.plan.protected)

    def become_root(self) -> None:
        mounts.become_root(_ROOT)
        # From here on every name is the container's, and code is never loaded from there.
        sys.path[:] = []
        sys.meta_path[:] = []

    def attach_volumes(self) -> None:
        for fd, (_source, target, read_only) in zip(self.sources, self.plan.volumes, strict=True):
            is_folder = stat.S_ISDIR(os.fstat(fd).st_mode)
            _make_mount_point(target, is_folder=is_folder)
            if read_only:
                sc.mount_setattr(fd, sc.MOUNT_ATTR_RDONLY, recursive=True)
            sc.mount_setattr(fd, sc.MOUNT_ATTR_NODEV | sc.MOUNT_ATTR_NOSUID, recursive=True)
            point = sc.openat2(target, os.O_PATH, sc.RESOLVE_NO_MAGICLINKS)
            sc.move_mount(fd, "", target_fd=point)
            close_all([fd, point])

    def make_root_read_only(self) -> None:
        if self.plan.read_only:
            sc.mount(None, "/", None, sc.MS_BIND | sc.MS_REMOUNT | sc.MS_RDONLY | sc.MS_NODEV)
            for entry in self.host.below if self.plan.lower == ("/",) else ():
                sc.mount(None, entry.point, None, sc.MS_BIND | sc.MS_REMOUNT | sc.MS_RDONLY | sc.MS_NODEV | entry.flags)

    def name_host(self) -> None:
        if self.plan.hostname is not None:
            sc.sethostname(self.plan.hostname)

    def raise_ulimits(self) -> None:
        """Let the hard limits of this process reach what its payloads ask for, while it still may."""
        process.raise_ulimits(self.plan.ulimits)

    def join_groups(self) -> None:
        for fd in self.groups:
            os.write(fd, b"0")
            os.close(fd)
        sc.unshare(sc.CLONE_NEWCGROUP)

    def enter_user_namespace(self) -> None:
        if self.user_fd >= 0:
            sc.setns(self.user_fd, sc.CLONE_NEWUSER)

    def lock_down(self) -> None:
        process.hide()
        limit = capabilities.restrict if self.plan.protected else (lambda _mask: None)
        lock_down(self.plan, limit=limit)
        process.die_with_parent()  # after the credentials, whose change clears it


def _make_mount_point(target: str, *, is_folder: bool) -> None:
    if is_folder:
        os.makedirs(target, exist_ok=True)
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    os.close(os.open(target, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o644))


def run_init(building: Building, channel: Channel, control: Channel) -> NoReturn:
    """Build the container, say so on ``channel``, and serve ``control`` until either end is gone. Never returns."""
    try:
        process.die_with_parent()
        os.setsid()
        step: Callable[[], None] | None = None
        for step in building.steps():
            step()
        channel.send({"op": "ready"}, [building.layer, building.tree])
        close_all([building.layer, building.tree])
    except BaseException as error:  # noqa: BLE001 - whatever it was, the launcher hears of it
        name = step.__name__.replace("_", " ") if step else "start"
        with suppress(OSError):
            channel.send({"op": "failed", "step": name, "errno": getattr(error, "errno", None), "reason": _said(error)})
        os._exit(1)
    Init(building.plan, channel, control).serve()


def _said(error: BaseException) -> str:
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    return f"{type(error).__name__}: {error}"


class Init:
    """The living PID 1: one loop over its sockets and its children."""

    def __init__(self, plan: Plan, channel: Channel, control: Channel) -> None:
        self.plan = plan
        self.channels = {channel.fileno(): channel, control.fileno(): control}
        self.owners = frozenset(self.channels)
        self.poll = select.poll()
        self.payloads: dict[int, Channel] = {}
        for fd in self.channels:
            self.poll.register(fd, select.POLLIN)
        self.wakeup, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        # What has its default is dropped where it comes from inside (pid_namespaces(7)); Python's own handler would end this process.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        self.poll.register(self.wakeup, select.POLLIN)

    def serve(self) -> NoReturn:
        while True:
            for fd, _event in self.poll.poll():
                if fd == self.wakeup:
                    os.read(fd, 4096)
                    self.reap()
                else:
                    self.take(self.channels[fd])

    def take(self, channel: Channel) -> None:
        try:
            message, fds = channel.receive()
        except EOFError:
            if channel.fileno() in self.owners:  # the launcher or the client has let go: so do we, and the kernel kills the rest
                os._exit(0)
            self.forget(channel)
            return
        except OSError:  # the descriptors did not fit: the asker sees its reply socket close
            return
        try:
            getattr(self, f"do_{message['op']}")(message, fds)
        finally:
            close_all(fds)

    def do_control(self, _message: Message, fds: list[int]) -> None:
        """Take orders on one more channel."""
        fd = os.dup(fds[0])
        self.channels[fd] = Channel.of(fd)
        self.poll.register(fd, select.POLLIN)

    def forget(self, channel: Channel) -> None:
        """Let go of a visitor that has left."""
        self.poll.unregister(channel.fileno())
        del self.channels[channel.fileno()]
        channel.close()

    def do_spawn(self, message: Message, fds: list[int]) -> None:
        status = Channel.of(os.dup(fds[0]))
        try:
            pid = self.spawn(message, fds[1:])
        except BaseException as error:  # noqa: BLE001 - it is the asker's
            with suppress(OSError):
                status.send(_failure(error))
            status.close()
            return
        process.prefer_to_kill(pid)
        pidfd = os.pidfd_open(pid)
        self.payloads[pid] = status
        with suppress(OSError):
            status.send({"op": "started", "pid": pid}, [pidfd])
        os.close(pidfd)

    def spawn(self, message: Message, fds: list[int]) -> int:
        stdin, stdout, stderr = fds[:3]
        environment = message["env"]
        identity: dict[str, Any] = {}
        user = message.get("user")
        if user is not None:
            found = users.find(user)
            identity = {"user": found.uid, "group": found.gid, "extra_groups": found.groups}
            environment.setdefault("HOME", found.home)
        if message.get("group") is not None:
            identity["group"] = users.find_group(message["group"])
        if message.get("extra_groups") is not None:
            identity["extra_groups"] = [users.find_group(one) for one in message["extra_groups"]]
        if message.get("tty") and "user" in identity:
            os.fchown(stdin, identity["user"], -1)  # as login(1) does: else the user may not open its own terminal by name
        prepare = self._preparation(message, stdin) if message.get("tty") or self.plan.ulimits else None
        popen = subprocess.Popen(
            message["args"],
            executable=message.get("executable"),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=message.get("cwd"),
            env=environment,
            start_new_session=True,
            restore_signals=message.get("restore_signals", True),
            umask=message.get("umask", -1),
            preexec_fn=prepare,  # noqa: PLW1509 - init has one thread
            pass_fds=(),
            **identity,
        )
        popen.returncode = 0  # the loop reaps it, not this object
        return popen.pid

    def _preparation(self, message: Message, terminal: int) -> Callable[[], None]:
        def prepare() -> None:
            process.set_ulimits(self.plan.ulimits)
            if message.get("tty"):
                sc.make_controlling_terminal(terminal)

        return prepare

    def do_signal(self, message: Message, fds: list[int]) -> None:
        """Send a signal to everything inside but this process, to a process group, or to one process and all below it."""
        group = message.get("group")
        targets = [-group] if group else process.descendants(message["pid"]) if message.get("pid") else [-1]
        for pid in targets:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, message["signal"])
        for fd in fds[:1]:
            self._answer(fd, {"op": "done"})

    def do_processes(self, _message: Message, fds: list[int]) -> None:
        """List the command lines of everything inside but this process."""
        found = [(pid, process.command_line(pid)) for pid in process.everyone() if pid != 1]
        self._answer(fds[0], {"op": "done", "processes": sorted((pid, line) for pid, line in found if line)})

    def do_file(self, message: Message, fds: list[int]) -> None:
        opened: list[int] = []
        try:
            answer = _file(message, opened)
        except Exception as error:  # noqa: BLE001 - it is the asker's
            answer = _failure(error)
        self._answer(fds[0], answer, opened)
        close_all(opened)

    def do_pty(self, _message: Message, fds: list[int]) -> None:
        """Open a pseudo-terminal of the container's own /dev/pts: the answer carries its two ends."""
        try:
            ends = list(os.openpty())
        except OSError as error:
            self._answer(fds[0], _failure(error))
            return
        self._answer(fds[0], {"op": "done"}, ends)
        close_all(ends)

    @staticmethod
    def _answer(fd: int, message: Message, fds: list[int] | None = None) -> None:
        reply = Channel.of(os.dup(fd))
        with suppress(OSError):
            reply.send(message, fds or [])
        reply.close()

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            asker = self.payloads.pop(pid, None)
            if asker is not None:
                with suppress(OSError):
                    asker.send({"op": "exited", "status": status})
                asker.close()


def _failure(error: BaseException) -> Message:
    number = getattr(error, "errno", None)
    reason = str(error) if number is None else os.strerror(number)
    return {"op": "failed", "errno": number, "kind": type(error).__name__, "reason": reason, "filename": _name(error)}


def _name(error: BaseException) -> str | None:
    name = getattr(error, "filename", None)
    return os.fsdecode(name) if isinstance(name, (str, bytes)) else None


def _file(message: Message, opened: list[int]) -> Message:
    """Do one thing with a file, by this root's names: no link leads out of it."""
    path, what = message["path"], message["what"]
    if what == "open":
        # Never wait for the other end of a FIFO, never take a terminal.
        fd = os.open(path, message["flags"] | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, message.get("mode", 0o666))
        opened.append(fd)
        return {"op": "done"}
    if what == "listdir":
        return {"op": "done", "names": os.listdir(path)}
    if what == "exists":
        return {"op": "done", "exists": os.path.exists(path)}
    if what == "mkdir":
        make = os.makedirs if message["parents"] else os.mkdir
        if not (message["exist_ok"] and os.path.isdir(path)):
            make(path, message["mode"])
        return {"op": "done"}
    raise OSError(errno.EINVAL, "unknown", what)
