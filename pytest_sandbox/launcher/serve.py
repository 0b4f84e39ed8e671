"""The launcher: one small process for each client, whose children the containers' inits are.

It keeps one container ready ahead of the plan that was asked for last, and offers it to the client before it is asked. It ends with its
client, however that ends, and takes every container with it.
"""

from __future__ import annotations

import _thread
import errno
import os
import select
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn

from pytest_sandbox import layers
from pytest_sandbox.channel import Channel, Message, close_all
from pytest_sandbox.errors import UnsupportedError
from pytest_sandbox.launcher import footing
from pytest_sandbox.launcher.building import Building, Host
from pytest_sandbox.launcher.door import Door
from pytest_sandbox.launcher.plan import OVERHEAD, Plan
from pytest_sandbox.launcher.shelf import Shelf
from pytest_sandbox.linux import cgroup, mounts, namespaces, process
from pytest_sandbox.linux.removal import remove_tree

__all__ = ["main"]

_TRIES = 100
#: Milliseconds within which a container that was taken is made good use of, before the next one is made: both wait for the same locks of the kernel.
_PATIENCE = 2


@dataclass(slots=True)
class Made:
    """One container as the launcher knows it; ``claimed`` by the client, or the spare that was made ahead."""

    id: str
    plan: Plan
    pid: int
    pidfd: int
    layer: int
    tree: int
    group: cgroup.Group
    points: list[tuple[str, str]]
    place: layers.Place
    claimed: bool = False
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
        self.mounts = mounts.watch()
        self.made: dict[str, Made] = {}
        self.by_pidfd: dict[int, Made] = {}
        self.spare: Made | None = None
        self.is_stale = False
        self.asked = 0
        self.count = 0
        self.wanted: Plan | None = None
        self.last: Plan | None = None
        self.patience = 0
        self.offered = 0.0
        self.poll = select.poll()
        for fd in (client.fileno(), self.client_pidfd):
            self.poll.register(fd, select.POLLIN)
        self.poll.register(self.mounts, select.POLLPRI)
        folder = lock.removesuffix(".lock")
        self.door = Door(folder, self.poll)
        self.host = Host(folder)
        self.shelf = Shelf()

    def serve(self) -> None:
        """Answer until the client is gone."""
        self.client.send({"op": "hello"}, [fd for fd in (self.host.user, self.host.rooted) if fd >= 0])
        while True:
            # What was mounted or unmounted before a container was asked for belongs into it.
            found = self.poll.poll(self.patience if self.wanted else None)
            if not found and self.wanted:
                self.make_ahead(self.wanted)
            for fd, _event in sorted(found, key=self.order):
                if fd == self.mounts:
                    self.forget_mounts()
                elif fd in self.by_pidfd:
                    self.dispose(self.by_pidfd[fd])
                elif self.door.has(fd):
                    self.door.attend(fd, self.receive_visitor)
                elif fd == self.client_pidfd or not self.hear():
                    return

    def order(self, found: tuple[int, int]) -> int:
        """Sort what poll(2) reports: what was mounted, and what the client has said, comes before what others ask."""
        return {self.mounts: 0, self.client.fileno(): 1}.get(found[0], 2)

    def hear(self) -> bool:
        """Do what the client asks for; False when it is gone."""
        try:
            message, fds = self.client.receive()
        except EOFError:
            return False
        close_all(fds)
        try:
            getattr(self, f"do_{message['op']}")(message)
        except UnsupportedError as error:
            self.client.send({"op": "unsupported", "feature": error.feature, "remedy": error.remedy})
        except OSError as error:
            self.fail(error, message["op"])
        return True

    def fail(self, error: OSError, what: str) -> None:
        """Tell the client why it does not get what it waits for."""
        step = getattr(error, "step", "limit the disk" if isinstance(error, layers.DiskLimitError) else what)
        reason = f"{error.strerror}: {error.filename}" if error.filename else error.strerror or str(error)
        self.client.send({"op": "error", "step": step, "reason": reason, "errno": error.errno})

    def do_create(self, message: Message) -> None:
        """Give the client a container of this plan, the spare where it has one, and make the next one ahead."""
        plan, self.asked = Plan.from_json(message["plan"]), message["number"]
        made = self.spare_of(plan) or self.build_on_the_moving(plan)
        self.client.send({"op": "created", "id": made.id, "pid": made.pid}, [made.pidfd])
        self.claim(made, message["about"])

    def do_prepare(self, message: Message) -> None:
        """See to it that the next container of this plan is ready."""
        self.asked = message["number"]
        self.make_ahead(Plan.from_json(message["plan"]))

    def do_taken(self, message: Message) -> None:
        """The client has taken the spare that it was offered."""
        made = self.made.get(message["id"])
        if made is not None:  # its init may have been killed meanwhile, as the client will see
            self.claim(made, message["about"])

    def do_closed(self, message: Message) -> None:
        """The client has no more use for a container: kill what is left of it."""
        made = self.made.get(message["id"])
        if made is not None:
            made.claimed = False
            process.kill(made.pidfd, signal.SIGKILL)

    def do_layer(self, message: Message) -> None:
        """Hand out the writable layer of a container."""
        made = self.made.get(message["id"])
        self.client.send({"op": "layer", "points": made.points if made else []}, [made.layer] if made else [])

    def do_freeze(self, message: Message) -> None:
        """Put a container's layer on the shelf, for others to lie on; one on disk stays where it is, and is to be copied."""
        made = self.made[message["id"]]
        if made.place.folder is not None:
            raise OSError(errno.EXDEV, "the layer is on disk")
        self.shelf.ask("put", message["key"], [made.tree])
        self.client.send({"op": "frozen"})

    def do_shelve(self, message: Message) -> None:
        """Make an empty layer on the shelf, for the client to fill."""
        fds = self.shelf.ask("make", message["key"])
        self.client.send({"op": "shelved"}, fds)
        close_all(fds)

    def do_unshelve(self, message: Message) -> None:
        """Let go of a committed layer; containers that lie on it keep it."""
        self.shelf.ask("drop", message["key"])

    def do_renew(self, message: Message) -> None:
        """Give a container whose layer was taken a new init and a new layer, in the same group, under the same name."""
        old = self.made[message["id"]]
        process.kill(old.pidfd, signal.SIGKILL)
        process.ended(old.pidfd)
        self.let_go(old)
        made = self.build(Plan.from_json(message["plan"]), identity=old.id, group=old.group)
        made.claimed, made.about, made.since = True, old.about, old.since
        self.client.send({"op": "created", "id": made.id, "pid": made.pid}, [made.pidfd])

    def spare_of(self, plan: Plan) -> Made | None:
        """Return the spare if it is of this plan; one of another plan, or over mounts of before, is thrown away."""
        if self.spare is not None and (self.is_stale or self.spare.plan != plan):
            process.kill(self.spare.pidfd, signal.SIGKILL)
            self.spare = None
        return self.spare

    def claim(self, made: Made, about: Any) -> None:
        """Note that a container is the client's, and that the one after it is wanted: at once, where one of the same plan was not waiting."""
        made.claimed, made.about, made.since = True, about, time.time()
        was_waiting = made is self.spare and time.monotonic() - self.offered >= _PATIENCE / 1000
        self.patience = _PATIENCE if was_waiting or made.plan != self.last else 0
        self.last = made.plan
        if made is self.spare:
            self.spare = None
        self.wanted = made.plan

    def make_ahead(self, plan: Plan) -> None:
        """Make the next container of this plan, and offer it."""
        self.wanted = None
        if self.spare_of(plan) is None:
            with suppress(OSError, UnsupportedError):  # what it was is said when somebody asks for that container
                self.spare, self.is_stale = self.build(plan), False
                offer = {"op": "ready", "id": self.spare.id, "pid": self.spare.pid, "number": self.asked}
                self.client.send(offer, [self.spare.pidfd])
                self.offered = time.monotonic()

    def build_on_the_moving(self, plan: Plan) -> Made:
        """Make a container, once more where a mount went away between the look at it and its turn (other tools' containers come and go)."""
        for _ in range(_TRIES - 1):
            try:
                return self.build(plan)
            except OSError:
                if not mounts.has_changed(self.mounts):
                    raise
                self.forget_mounts()
        return self.build(plan)

    def build(self, plan: Plan, *, identity: str = "", group: cgroup.Group | None = None) -> Made:
        """Make a container with its groups and limits, or one more in the group of an old one."""
        if group is None:
            self.count += 1
            identity = f"{self.session.name}-{self.count}"
            group = self.session.create(identity)
        place = layers.MEMORY
        shelved: dict[str, int] = {}
        try:
            group.apply(plan.limits(), overhead=OVERHEAD)
            for key in plan.shelved:
                (shelved[key],) = self.shelf.ask("clone", key)
            place = self.find_place(plan, identity)
            placed = replace(plan, layer_folder=place.folder, layer_device=place.device)
            joins = group.joins() if group.fd() < 0 else ()
            building = Building(placed, self.host, hostname=identity, joins=joins, shelved=shelved)
            built = building.build(group.fd())
        except BaseException as error:
            group.remove()
            place.remove()
            layers.explain(error, place)
            raise
        finally:
            close_all(list(shelved.values()))
        place.release()
        made = Made(identity, plan, *built, group, self.host.points(), place)
        self.made[identity] = self.by_pidfd[made.pidfd] = made
        self.poll.register(made.pidfd, select.POLLIN)
        return made

    def find_place(self, plan: Plan, identity: str) -> layers.Place:
        """Make the place of a writable layer that is not in memory, with what is to be in it from the start."""
        base = plan.layers or self.host.root.layers
        if base is None:
            return layers.MEMORY
        if plan.disk is not None and not self.host.is_root:
            raise footing.unlimited(self.host.root, plan.disk)
        place = layers.make(base, plan.disk, session=self.session.name, identity=identity, lock=self.lock)
        points = ["", *(point for point, _lower in self.host.points())]
        numbers = {point: number for number, point in enumerate(points)} | {folder: n for n, folder in enumerate(plan.folders, 1000)}
        for point, kept in plan.kept:
            layers.fill(place, numbers[point], kept)
        return place

    def forget_mounts(self) -> None:
        """Look at the host's mounts again: what was made ahead is no longer what the host looks like, unless the client has it already."""
        self.is_stale = True
        for _ in range(_TRIES):
            with suppress(FileNotFoundError, NotADirectoryError):  # one went away between being found and being tried
                self.host.look()
                return

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
            return {"op": "layer", "points": made.points}, [os.dup(made.layer)]
        builder = -1 if self.host.is_root else namespaces.open_of(os.getpid(), "user")
        user = self.host.user_of(made.plan)
        spaces = [os.dup(user) if user >= 0 else -1, builder]
        way = {"plan": made.plan.to_json(), "joins": made.group.joins(), "pid": made.pid, "user_namespaces": [fd >= 0 for fd in spaces]}
        return {"op": "entered", "about": made.about, **way}, [os.dup(made.pidfd), *(fd for fd in spaces if fd >= 0)]

    def dispose(self, made: Made) -> None:
        """Let go of a container whose init has ended; a thread pays for freeing its layer."""
        if made is self.spare:
            self.spare = None
        self.let_go(made)
        with suppress(OSError):  # the sweep finds it
            made.group.remove()

    def let_go(self, made: Made) -> None:
        """Take a dead init's exit status, and close what is held of it."""
        del self.made[made.id], self.by_pidfd[made.pidfd]
        self.poll.unregister(made.pidfd)
        os.waitpid(made.pid, 0)
        os.close(made.pidfd)
        _thread.start_new_thread(_free, ([made.layer, made.tree], made.place.folder))

    def close(self) -> None:
        """Kill every container, and remove the groups of this session."""
        for made in self.made.values():
            process.kill(made.pidfd, signal.SIGKILL)
        for made in self.made.values():
            process.ended(made.pidfd, 10)
        self.door.close()
        cgroup.destroy(self.hierarchy.sessions().get(self.session.name, ()))
        layers.remove(self.lock)


def _card(made: Made, *, figures: bool) -> Message:
    """Return what a container shows to other processes of this user."""
    stats = {**asdict(made.group.stats()), **made.group.pressure()} if figures else None
    return {"id": made.id, "pid": made.pid, "since": made.since, "about": made.about, "stats": stats, "paused": made.group.is_frozen()}


def _free(fds: list[int], folder: str | None) -> None:
    close_all(fds)
    if folder is not None:
        with suppress(OSError):  # what stays is tried again at the session's end
            remove_tree(folder)


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
