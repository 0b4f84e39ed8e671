"""The launcher: one small, single-threaded process for each client, of which containers are forks.

It keeps one container ready ahead of the plan that was asked for last. It ends with its client, however that ends, and takes every
container with it.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn

from pytest_sandbox import layers
from pytest_sandbox.channel import Channel, Message, close_all
from pytest_sandbox.launcher import footing
from pytest_sandbox.launcher.door import Door
from pytest_sandbox.launcher.init import Building, run_init
from pytest_sandbox.launcher.keeper import Keeper
from pytest_sandbox.launcher.plan import Plan
from pytest_sandbox.launcher.profile import prepare
from pytest_sandbox.launcher.shelf import Shelf
from pytest_sandbox.linux import cgroup, mounts, namespaces, process
from pytest_sandbox.linux import syscall as sc

if TYPE_CHECKING:
    from pytest_sandbox.linux.host_root import HostRoot

__all__ = ["main"]

_NAMESPACES = sc.CLONE_NEWNS | sc.CLONE_NEWPID | sc.CLONE_NEWIPC | sc.CLONE_NEWUTS


@dataclass(slots=True)
class Made:
    """One container as the launcher knows it: building, ready, or claimed by the client."""

    id: str
    plan: Plan
    pid: int
    pidfd: int
    channel: Channel
    control: Channel
    group: cgroup.Group
    host: HostRoot
    place: layers.Place
    kept: list[int] = field(default_factory=list)
    ready: bool = False
    claimed: bool = False
    waited_for: bool = False
    about: Any = None
    since: float = 0.0


class Launcher:
    """The loop, and what it holds."""

    def __init__(self, client: Channel, session: str, lock: str) -> None:
        self.client = client
        self.lock = lock
        self.client_pidfd = os.pidfd_open(os.getppid())
        self.hierarchy = cgroup.Hierarchy.find()
        self.session = self.hierarchy.session(session)
        self.keeper = Keeper()
        self.shelf = Shelf()
        self.mountinfo = mounts.watch()
        self.made: dict[str, Made] = {}
        self.count = 0
        self.poll = select.poll()
        for fd in (client.fileno(), self.client_pidfd):
            self.poll.register(fd, select.POLLIN)
        self.poll.register(self.mountinfo, select.POLLPRI)
        self.folder = lock.removesuffix(".lock")
        self.door = Door(self.folder, self.poll)
        self.host = footing.find(self.folder)
        self.wakeup, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.poll.register(self.wakeup, select.POLLIN)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def serve(self) -> None:
        """Answer until the client is gone."""
        gc.collect()
        gc.freeze()
        gc.disable()  # a collection would touch, and so copy, pages that every init shares
        hello = {"op": "hello", "user_namespace": self.keeper.user_fd >= 0}
        self.client.send(hello, [fd for fd in [self.keeper.user_fd] if fd >= 0])
        while True:
            # What was mounted or unmounted before a container was asked for belongs into it.
            for fd, _event in sorted(self.poll.poll(), key=lambda found: found[0] != self.mountinfo):
                if fd == self.client_pidfd:
                    return
                if fd == self.client.fileno():
                    try:
                        message, fds = self.client.receive()
                    except EOFError:
                        return
                    self.take(message, fds)
                elif fd == self.mountinfo:
                    self.forget_mounts()
                elif fd == self.wakeup:
                    os.read(fd, 4096)
                    self.reap()
                elif self.door.has(fd):
                    self.door.attend(fd, self.receive_visitor)
                else:
                    self.hear(fd)

    def take(self, message: Message, fds: list[int]) -> None:
        """Do what the client asks for."""
        close_all(fds)
        what = message["op"]
        if what in {"create", "prepare"}:
            self.create(Plan.from_json(message["plan"]), wanted=what == "create", about=message.get("about"))
        elif what == "closed":
            made = self.made.get(message["id"])
            if made is not None:
                self.dispose(made, killed=True)
        elif what == "layer":
            made = self.made.get(message["id"])
            points = _points(made) if made else []
            self.client.send({"op": "layer", "points": points}, made.kept[:1] if made else [])
        elif what in {"freeze", "shelve", "unshelve", "renew"}:
            try:
                getattr(self, what)(message)
            except OSError as error:
                self.fail(what, error.strerror or str(error), error.errno)

    def freeze(self, message: Message) -> None:
        """Put a container's layer on the shelf, for others to lie on; one on disk stays where it is, and is to be copied."""
        made = self.made[message["id"]]
        if made.place.folder is not None:
            raise OSError(errno.EXDEV, "the layer is on disk")
        self.shelf.ask("put", message["key"], made.kept[1:2])
        self.client.send({"op": "frozen", "points": _points(made)}, made.kept[:1])

    def shelve(self, message: Message) -> None:
        """Make an empty layer on the shelf, for the client to fill."""
        fds = self.shelf.ask("make", message["key"])
        self.client.send({"op": "shelved"}, fds)
        close_all(fds)

    def unshelve(self, message: Message) -> None:
        """Let go of a committed layer; containers that lie on it keep it."""
        self.shelf.ask("drop", message["key"])

    def renew(self, message: Message) -> None:
        """Give a container whose layer was taken a new init and a new layer, in the same group, under the same name."""
        old = self.made.pop(message["id"])
        process.kill(old.pidfd, signal.SIGKILL)
        process.ended(old.pidfd)
        self.poll.unregister(old.channel.fileno())
        made = self.build(Plan.from_json(message["plan"]), identity=old.id, group=old.group)
        made.waited_for, made.about = True, old.about
        self.let_go(old, killed=True)

    def receive_visitor(self, message: Message) -> tuple[Message, list[int]]:
        """Answer another process of this user."""
        what = message["op"]
        if what == "list":
            found = [made for made in self.made.values() if made.claimed]
            return {"op": "list", "containers": [_card(made, figures=bool(message.get("stats"))) for made in found]}, []
        made = self.made.get(message["id"])
        if made is None or not made.claimed:
            return {"op": "error", "reason": "has ended"}, []
        if what == "layer":
            return {"op": "layer", "points": _points(made)}, [os.dup(made.kept[0])]
        ours, theirs = Channel.pair()
        made.channel.send({"op": "control"}, [theirs.fileno()])
        theirs.close()
        return {"op": "entered", "plan": made.plan.to_json(), "about": made.about}, [os.dup(made.pidfd), ours.socket.detach()]

    def create(self, plan: Plan, *, wanted: bool, about: Any = None) -> None:
        """Give the client a container of this plan as soon as there is one; or just see to it that there is."""
        spare = next((made for made in self.made.values() if not made.claimed and not made.waited_for), None)
        other = None if spare is None or spare.plan == plan else spare
        try:
            spare = self.build(plan) if spare is None or other is not None else spare
        except OSError as error:
            if wanted:
                step = "limit the disk" if isinstance(error, layers.DiskLimitError) else "fork and make the groups"
                self.fail(step, ": ".join(filter(None, [error.strerror or str(error), error.filename])), error.errno)
            return
        if wanted:
            spare.waited_for, spare.about = True, about
            self.hand_over(spare)
        if other is not None:  # while the right one is built
            self.discard(other)

    def hand_over(self, made: Made) -> None:
        """Give a ready container to the client, and begin with the one after it."""
        if not made.ready:
            return
        made.claimed, made.waited_for, made.since = True, False, time.time()
        self.client.send({"op": "created", "id": made.id}, [made.pidfd, made.control.fileno()])
        made.control.close()
        with suppress(OSError):  # what it was is said when somebody asks for that container
            self.build(made.plan)

    def build(self, plan: Plan, *, identity: str = "", group: cgroup.Group | None = None) -> Made:
        """Fork an init that builds a container of this plan; it says when it is ready."""
        if group is None:
            self.count += 1
            identity = f"{self.session.name}-{self.count}"
            group = self.session.create(identity)
        network_fd, place = -1, layers.MEMORY
        shelved: dict[str, int] = {}
        try:
            for key in plan.shelved:
                (shelved[key],) = self.shelf.ask("clone", key)
            if base := plan.layers or self.host.layers:
                place = layers.make(base, plan.disk, session=self.session.name, identity=identity, lock=self.lock)
            if plan.own_network and plan.user_namespace and self.keeper.user_fd >= 0:
                network_fd = self.keeper.take_network()
            made = self.fork(identity, plan, group, network_fd, place, shelved)
        except OSError:
            group.remove()
            place.remove()
            raise
        finally:
            close_all([fd for fd in [network_fd, *shelved.values()] if fd >= 0])
        self.made[identity] = made
        self.poll.register(made.channel.fileno(), select.POLLIN)
        return made

    def fork(self, identity: str, plan: Plan, group: cgroup.Group, network_fd: int, place: layers.Place, shelved: dict[str, int]) -> Made:
        channel, inits_channel = Channel.pair()
        control, inits_control = Channel.pair()
        named = replace(plan, hostname=plan.hostname or identity, layer_folder=place.folder, layer_device=place.device)
        user_fd = self.keeper.user_fd if plan.user_namespace else -1
        prepare(plan)
        pid, pidfd = sc.clone3(_NAMESPACES)
        if not pid:
            signal.set_wakeup_fd(-1)
            kept = {inits_channel.fileno(), inits_control.fileno(), network_fd, user_fd, *shelved.values()}
            process.close_others({fd for fd in kept if fd >= 0})
            run_init(
                Building(named, joins=group.joins(), network_fd=network_fd, user_fd=user_fd, host=self.host, shelved=shelved),
                inits_channel,
                inits_control,
            )
        inits_channel.close()
        inits_control.close()
        return Made(identity, plan, pid, pidfd, channel, control, group, self.host, place)

    def hear(self, fd: int) -> None:
        """Take what an init says: that it is ready, that a step failed; or that it is gone."""
        made = next((made for made in self.made.values() if made.channel.fileno() == fd), None)
        if made is None:
            return
        try:
            message, fds = made.channel.receive()
        except EOFError:
            message, fds = {"op": "gone"}, []
        if message["op"] == "ready":
            made.ready = True
            made.place.release()
            made.kept = [*fds, namespaces.open_of(made.pid, "mnt")]
            if made.waited_for:
                self.hand_over(made)
            return
        self.poll.unregister(fd)
        if made.claimed:  # the client sees the end of its init by itself, and says when it is done with it
            return
        waited_for = made.waited_for
        self.discard(made)
        if waited_for:
            self.fail(message.get("step", "start"), message.get("reason", "init ended"), message.get("errno"))

    def fail(self, step: str, reason: str, number: int | None) -> None:
        """Tell the client that the container which it waits for cannot be made."""
        self.client.send({"op": "error", "step": step, "reason": reason, "errno": number})

    def forget_mounts(self) -> None:
        """Look at the host's mounts again: what was made ahead over the old ones is no longer what the host looks like."""
        self.host = footing.find(self.folder)
        for made in [made for made in self.made.values() if not made.claimed and not made.waited_for]:
            self.discard(made)

    def reap(self) -> None:
        """Take the exit status of inits that ended by themselves; the keeper's end is ours."""
        for made in self.made.values():
            with suppress(ChildProcessError):
                os.waitpid(made.pid, os.WNOHANG)

    def discard(self, made: Made) -> None:
        """End a container that no client has."""
        process.kill(made.pidfd, signal.SIGKILL)
        process.ended(made.pidfd)
        made.control.close()
        self.dispose(made, killed=True)
        made.group.remove()

    def dispose(self, made: Made, *, killed: bool) -> None:
        """Let go of a dead container; the keeper pays for freeing its layer."""
        del self.made[made.id]
        with suppress(KeyError, ValueError):
            self.poll.unregister(made.channel.fileno())
        self.let_go(made, killed=killed)

    def let_go(self, made: Made, *, killed: bool) -> None:
        """Take a dead init's exit status, and close what is held of it."""
        with suppress(ChildProcessError):
            os.waitpid(made.pid, 0 if killed else os.WNOHANG)
        made.channel.close()
        os.close(made.pidfd)
        made.place.release()
        with suppress(OSError):
            self.keeper.drop(made.kept, made.place.folder)

    def close(self) -> None:
        """Kill every container, and remove the groups of this session."""
        for made in list(self.made.values()):
            process.kill(made.pidfd, signal.SIGKILL)
        for made in list(self.made.values()):
            process.ended(made.pidfd, 10)
        self.door.close()
        for folders in [self.hierarchy.sessions().get(self.session.name, ())]:
            cgroup.destroy(folders)
        layers.remove(self.lock)


def _points(made: Made) -> list[tuple[str, str]]:
    """Return where the overlays above the root lie, and on what."""
    return [(entry.point, entry.lower) for entry in made.host.below]


def _card(made: Made, *, figures: bool) -> Message:
    """Describe a container to a visitor."""
    figures_ = asdict(made.group.stats()) if figures else None
    return {"id": made.id, "pid": made.pid, "since": made.since, "about": made.about, "stats": figures_}


def main() -> NoReturn:
    """Run with the arguments SESSION LOCK and two descriptors: the client's socket, and the lock, which is held by being open."""
    session, lock, *fds = sys.argv[1:]
    footing.gain_power(int(fds[0]))
    for fd in map(int, fds):
        os.set_inheritable(fd, False)
    client = Channel.of(int(fds[0]))
    try:
        launcher = Launcher(client, session, lock)
    except OSError as error:
        client.send(
            {"op": "error", "step": "start the launcher", "reason": f"{error.strerror} {error.filename or ''}", "errno": error.errno}
        )
        sys.exit(1)
    try:
        launcher.serve()
    finally:
        launcher.close()
        with suppress(OSError):
            os.unlink(lock)
    sys.exit(0)
