"""The launcher: one small process for each client, whose children the containers' inits are.

It keeps one container ready ahead of the spec that was asked for last, and offers it to the client
before it is asked. It ends with its client, however that ends, and takes every container with it.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from pytest_sandbox.errors import UnsupportedError
from pytest_sandbox.launcher.control_socket import ControlSocket
from pytest_sandbox.launcher.layer_holder import LayerHolder
from pytest_sandbox.launcher.layer_remover import LayerRemover
from pytest_sandbox.linux import file_mounts, mounts, namespaces, process, signals
from pytest_sandbox.linux.cgroup import Cgroup, destroy, find_hierarchy
from pytest_sandbox.runtime import privileges, storage
from pytest_sandbox.runtime.create import Building, Host
from pytest_sandbox.runtime.protocol import Channel, InvalidMessageError, Message, close_all
from pytest_sandbox.runtime.spec import OVERHEAD, Spec

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_TRIES = 100
#: Milliseconds within which a container that was taken is made good use of, before the next one is
#: made: both wait for the same locks of the kernel.
_PATIENCE = 2
#: Seconds between two tries to remove a cgroup that the kernel still takes for busy, and how long
#: that is tried.
_REMOVE_AGAIN = 0.01
_REMOVE_FOR = 10.0
#: Seconds for a killed init to end before its place is taken, and for all of them at the end of the
#: session.
_END_FOR = 0.5
_CLOSE_FOR = 10.0


@dataclass(slots=True)
class Made:
    """One container as the launcher knows it; ``claimed`` by the client, or the spare that was made
    ahead.
    """

    id: str
    spec: Spec
    pid: int
    pidfd: int
    layer: int
    tree: int
    cgroup: Cgroup
    points: list[tuple[str, str]]
    place: storage.Place
    seen: list[file_mounts.Stamp]
    claimed: bool = False
    about: Any = None
    since: float = 0.0
    request: int = 0
    """The number of the request that it was made for."""
    held_as: str = ""
    """The key of its writable layer in the layer holder, once it was committed."""
    is_replaced: bool = False
    """Whether another container has its id and its cgroup already."""


class EndedError(Exception):
    """The client named a container that has ended."""


class Launcher:
    """The loop, and what it holds."""

    def __init__(self, client: Channel, session: str, lock: str) -> None:
        self.client = client
        self.lock = lock
        self.client_pidfd = os.pidfd_open(os.getppid())
        self.hierarchy = find_hierarchy()
        self.session = self.hierarchy.attach(session)
        self.mounts = mounts.watch()
        self.made: dict[str, Made] = {}
        self.by_pidfd: dict[int, Made] = {}
        self.committed: dict[str, Made] = {}
        """Containers whose init has ended and whose layer is in the layer holder: the client can
        have them renewed.
        """
        self.busy: list[tuple[Cgroup, float]] = []
        """Cgroups that could not be removed yet, and until when that is tried."""
        self.spare: Made | None = None
        self.is_stale = False
        self.is_outdated = False
        """Whether what the host has mounted could not be found out when it was last looked at."""
        self.asked = 0
        self.count = 0
        self.wanted: Spec | None = None
        self.last: Spec | None = None
        self.patience = 0
        self.offered = 0.0
        self.poll = select.poll()
        for fd in (client.fileno(), self.client_pidfd):
            self.poll.register(fd, select.POLLIN)
        self.poll.register(self.mounts, select.POLLPRI)
        directory = lock.removesuffix(".lock")
        self.control = ControlSocket(directory, self.poll)
        self.host = Host(directory)
        self.layer_holder = LayerHolder()
        self.layer_remover = LayerRemover()

    def serve(self) -> None:
        """Answer until the client is gone."""
        self.client.send(
            {"op": "hello"}, [fd for fd in (self.host.user, self.host.rooted) if fd >= 0]
        )
        while True:
            # What was mounted or unmounted before a container was asked for belongs into it.
            found = self.poll.poll(self.next_deadline())
            if not found and self.wanted:
                self.make_ahead(self.wanted)
            for fd, _event in sorted(found, key=self.order):
                try:
                    if not self.attend(fd):
                        return
                except Exception as error:  # noqa: BLE001 - nothing that one container or the host does ends the others
                    traceback.print_exception(error)
            if self.busy:
                self.remove_busy()

    def next_deadline(self) -> float | None:
        """Return the milliseconds after which there is something to do, whether or not somebody
        asks.
        """
        if self.wanted:
            return self.patience
        waits = [self.control.expire(), _REMOVE_AGAIN if self.busy else None]
        return min((seconds * 1000 for seconds in waits if seconds is not None), default=None)

    def attend(self, fd: int) -> bool:
        """Do what a descriptor that poll(2) reported is about; return False when the client is
        gone.
        """
        if fd == self.mounts:
            self.forget_mounts()
        elif fd in self.by_pidfd:
            if process.ended(
                fd, 0
            ):  # else its number is another container's by now: the first one was disposed of meanwhile
                self.dispose(self.by_pidfd[fd])
        elif self.control.has(fd):
            self.control.attend(fd, self.receive_visitor)
        elif fd == self.client.fileno():
            return self.hear()
        return fd != self.client_pidfd

    def order(self, found: tuple[int, int]) -> int:
        """Sort what poll(2) reports: what was mounted, and what the client has said, comes before
        what others ask.
        """
        return {self.mounts: 0, self.client.fileno(): 1}.get(found[0], 2)

    def hear(self) -> bool:
        """Do what the client asks for; False when it is gone."""
        try:
            message, fds = self.client.receive()
        except EOFError as error:
            if isinstance(error, InvalidMessageError):
                traceback.print_exception(error)  # seen with PYTEST_SANDBOX_DEBUG
            return False
        close_all(fds)
        try:
            getattr(self, f"do_{message['op']}")(message)
        except Exception as error:  # noqa: BLE001 - one container's error must not end the others
            return self.answer(message, self.refusal(error, message["op"]))
        return True

    def answer(self, message: Message, answer: Message, fds: Sequence[int] = ()) -> bool:
        """Answer a message under its number, if it is one that is answered; False when the client
        is gone.
        """
        if "request" in message:
            try:
                self.client.send({**answer, "request": message["request"]}, fds)
            except (BrokenPipeError, ConnectionResetError):
                return False
        return True

    def refusal(self, error: Exception, what: str) -> Message:
        """Return the answer that tells the client why it does not get what it waits for."""
        if isinstance(error, UnsupportedError):
            return {"op": "unsupported", "feature": error.feature, "remedy": error.remedy}
        if isinstance(error, EndedError):
            return {"op": "ended"}
        if not isinstance(error, OSError):
            traceback.print_exception(error)  # seen with PYTEST_SANDBOX_DEBUG
            return {
                "op": "error",
                "step": what,
                "reason": f"{type(error).__name__}: {error}",
                "errno": 0,
            }
        step = getattr(
            error, "step", "limit the disk" if isinstance(error, storage.DiskLimitError) else what
        )
        reason = (
            f"{error.strerror}: {error.filename}"
            if error.filename
            else error.strerror or str(error)
        )
        return {"op": "error", "step": step, "reason": reason, "errno": error.errno}

    def of(self, message: Message) -> Made:
        """Return the container that a message names. Raises :class:`EndedError`."""
        made = self.made.get(message["id"])
        if made is None:
            raise EndedError
        return made

    def do_create(self, message: Message) -> None:
        """Give the client a container of this spec, the spare where it has one, and make the next
        one ahead.
        """
        spec, self.asked = Spec.from_json(message["spec"]), message["number"]
        made = self.spare_of(spec) or self.build_on_the_moving(spec)
        made.request = message["request"]
        self.claim(made, message["about"])
        self.answer(message, {"op": "created", "id": made.id, "pid": made.pid}, [made.pidfd])

    def do_prepare(self, message: Message) -> None:
        """See to it that the next container of this spec is ready."""
        self.asked = message["number"]
        self.make_ahead(Spec.from_json(message["spec"]))

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
        elif message["id"] in self.committed:
            self.remove_cgroup(self.committed.pop(message["id"]).cgroup)

    def do_cancel(self, message: Message) -> None:
        """The client was interrupted while it waited for an answer: nobody has the container that
        was made for it.
        """
        for made in self.made.values():
            if made.request == message["answer"]:
                made.claimed = False
                process.kill(made.pidfd, signal.SIGKILL)

    def do_layer(self, message: Message) -> None:
        """Hand out the writable layer of a container."""
        made = self.of(message)
        self.answer(message, {"op": "layer", "points": made.points}, [made.layer])

    def do_refused(self, message: Message) -> None:
        """Tell which sockets, FIFOs and directories of the host containers do not reach."""
        self.answer(message, {"op": "refused", "paths": self.host.root.refused})

    def do_freeze(self, message: Message) -> None:
        """Hand a container's layer to the layer holder, for others to lie on; one on disk stays
        where it is, and is to be copied.

        A client that was interrupted asks again with the same key.
        """
        made = self.of(message)
        if made.place.directory is not None:
            raise OSError(errno.EXDEV, "the layer is on disk")
        if made.held_as != message["key"]:
            self.layer_holder.ask("put", message["key"], [made.tree])
            made.held_as = message["key"]
        self.answer(message, {"op": "frozen"})

    def do_shelve(self, message: Message) -> None:
        """Make an empty layer in the layer holder, for the client to fill."""
        fds = self.layer_holder.ask("make", message["key"])
        try:
            self.answer(message, {"op": "shelved"}, fds)
        finally:
            close_all(fds)

    def do_unshelve(self, message: Message) -> None:
        """Let go of a committed layer; containers that lie on it keep it."""
        self.layer_holder.ask("drop", message["key"])

    def do_renew(self, message: Message) -> None:
        """Give a container whose layer was taken a new init and a new layer, in the same cgroup,
        under the same name.
        """
        old = self.committed.pop(message["id"], None)
        if old is None:
            old = self.of(message)
            process.kill(old.pidfd, signal.SIGKILL)
            self.replace(old)
        try:
            made = self.build(Spec.from_json(message["spec"]), identity=old.id, cgroup=old.cgroup)
        except BaseException:
            self.committed[old.id] = old
            raise
        made.claimed, made.about, made.since = True, old.about, old.since
        self.answer(message, {"op": "renewed", "id": made.id, "pid": made.pid}, [made.pidfd])

    def spare_of(self, spec: Spec) -> Made | None:
        """Return the spare if it is of this spec; one of another spec, or over mounts or
        directories of before, is thrown away.
        """
        if self.spare is not None and (
            self.is_stale or self.spare.spec != spec or not file_mounts.are_current(self.spare.seen)
        ):
            process.kill(self.spare.pidfd, signal.SIGKILL)
            self.spare = None
        return self.spare

    def claim(self, made: Made, about: Any) -> None:
        """Note that a container is the client's, and that the one after it is wanted: at once,
        where one of the same spec was not waiting.
        """
        made.claimed, made.about, made.since = True, about, time.time()
        was_waiting = made is self.spare and time.monotonic() - self.offered >= _PATIENCE / 1000
        self.patience = _PATIENCE if was_waiting or made.spec != self.last else 0
        self.last = made.spec
        if made is self.spare:
            self.spare = None
        self.wanted = made.spec

    def make_ahead(self, spec: Spec) -> None:
        """Make the next container of this spec, and offer it."""
        self.wanted = None
        if self.spare_of(spec) is None:
            with suppress(Exception):  # what it was is said when somebody asks for that container
                self.spare, self.is_stale = self.build(spec), False
                offer = {
                    "op": "ready",
                    "id": self.spare.id,
                    "pid": self.spare.pid,
                    "number": self.asked,
                    "seen": self.spare.seen,
                }
                self.client.send(offer, [self.spare.pidfd])
                self.offered = time.monotonic()

    def build_on_the_moving(self, spec: Spec) -> Made:
        """Make a container, once more where a mount went away between the look at it and its turn
        (other tools' containers come and go).
        """
        for _ in range(_TRIES - 1):
            try:
                return self.build(spec)
            except OSError:
                if not mounts.has_changed(self.mounts):
                    raise
                self.forget_mounts()
        return self.build(spec)

    def build(self, spec: Spec, *, identity: str = "", cgroup: Cgroup | None = None) -> Made:
        """Make a container with its cgroups and limits, or one more in the cgroup of an old one."""
        if self.is_outdated:
            self.forget_mounts()  # what is wrong is the answer to who asks
        is_new = cgroup is None
        if cgroup is None:
            self.count += 1
            identity = f"{self.session.name}-{self.count}"
            cgroup = self.session.create(identity)
        place = storage.MEMORY
        shelved: dict[str, int] = {}
        try:
            cgroup.apply(spec.limits(), overhead=OVERHEAD)
            for key in spec.shelved:
                (shelved[key],) = self.layer_holder.ask("clone", key)
            place = self.find_place(spec, identity)
            placed = replace(spec, layer_directory=place.directory, layer_device=place.device)
            joins = cgroup.join_paths() if cgroup.fd() < 0 else ()
            building = Building(placed, self.host, hostname=identity, joins=joins, shelved=shelved)
            built = building.build(cgroup.fd())
        except BaseException as error:
            if is_new:
                self.remove_cgroup(cgroup)
            place.remove()
            storage.explain(error, place)
            raise
        finally:
            close_all(list(shelved.values()))
        place.release()
        made = Made(identity, spec, *built, cgroup, self.host.points(), place, building.seen)
        self.made[identity] = self.by_pidfd[made.pidfd] = made
        self.poll.register(made.pidfd, select.POLLIN)
        return made

    def find_place(self, spec: Spec, identity: str) -> storage.Place:
        """Make the place of a writable layer that is not in memory, with what is to be in it from
        the start.
        """
        base = spec.layers or self.host.root.layers
        if base is None:
            return storage.MEMORY
        if spec.disk is not None and not self.host.is_root:
            raise privileges.unlimited(self.host.root, spec.disk)
        place = storage.make(
            base, spec.disk, session=self.session.name, identity=identity, lock=self.lock
        )
        points = ["", *(point for point, _lower in self.host.points())]
        numbers = {point: number for number, point in enumerate(points)} | {
            directory: n for n, directory in enumerate(spec.directories, 1000)
        }
        for point, kept in spec.kept:
            storage.fill(place, numbers[point], kept)
        return place

    def forget_mounts(self) -> None:
        """Look at the host's mounts again: what was made ahead is no longer what the host looks
        like, unless the client has it already.
        """
        self.is_stale = self.is_outdated = True
        for _ in range(_TRIES):
            with suppress(
                FileNotFoundError, NotADirectoryError
            ):  # one went away between being found and being tried
                self.host.look()
                self.is_outdated = False
                return

    def receive_visitor(self, message: Message) -> tuple[Message, list[int]]:
        """Answer another process of this user."""
        what = message["op"]
        if what == "list":
            found = [made for made in self.made.values() if made.claimed]
            return {
                "op": "list",
                "containers": [_card(made, figures=bool(message.get("stats"))) for made in found],
            }, []
        made = self.made.get(message["id"])
        if made is None or not made.claimed:
            return {"op": "error", "reason": "has ended"}, []
        if what == "layer":
            return {"op": "layer", "points": made.points}, [os.dup(made.layer)]
        builder = -1 if self.host.is_root else namespaces.open_namespace(os.getpid(), "user")
        user = self.host.user_of(made.spec)
        spaces = [os.dup(user) if user >= 0 else -1, builder]
        way = {
            "spec": made.spec.to_json(),
            "joins": made.cgroup.join_paths(),
            "pid": made.pid,
            "user_namespaces": [fd >= 0 for fd in spaces],
        }
        return {"op": "entered", "about": made.about, **way}, [
            os.dup(made.pidfd),
            *(fd for fd in spaces if fd >= 0),
        ]

    def dispose(self, made: Made) -> None:
        """Let go of a container whose init has ended; one that was committed can be renewed until
        the client closes it.
        """
        if made is self.spare:
            self.spare = None
        self.let_go(made)
        if made.is_replaced:
            return
        if made.held_as and made.claimed:
            self.committed[made.id] = made
        else:
            self.remove_cgroup(made.cgroup)

    def replace(self, made: Made) -> None:
        """Let go of a container that another one takes the place of; at once, unless its init waits
        for somebody to reap its processes.
        """
        del self.made[made.id]
        made.is_replaced = True
        if process.ended(made.pidfd, _END_FOR):
            self.let_go(made)

    def let_go(self, made: Made) -> None:
        """Take a dead init's exit status, and close what is held of it."""
        del self.by_pidfd[made.pidfd]
        if self.made.get(made.id) is made:
            del self.made[made.id]
        self.poll.unregister(made.pidfd)
        process.reap(made.pid, made.pidfd)
        os.close(made.pidfd)
        self.layer_remover.free([made.layer, made.tree], made.place.directory)

    def remove_cgroup(self, cgroup: Cgroup) -> None:
        """Remove the cgroup of a container that has ended, at once or later; frozen processes end
        when they are thawed.
        """
        if not self.removed(cgroup):
            with suppress(OSError, UnsupportedError):
                cgroup.thaw()
            self.busy.append((cgroup, time.monotonic() + _REMOVE_FOR))

    def removed(self, cgroup: Cgroup) -> bool:
        """Remove a cgroup unless the kernel takes it for busy."""
        try:
            cgroup.remove(_PATIENCE / 1000)
        except OSError as error:
            return error.errno != errno.EBUSY  # else the end of the session finds it
        return True

    def remove_busy(self) -> None:
        """Try again to remove the cgroups that were busy; what is busy for long goes with the
        session.
        """
        now = time.monotonic()
        self.busy = [
            (cgroup, end) for cgroup, end in self.busy if not self.removed(cgroup) and end > now
        ]

    def close(self) -> None:
        """Kill every container, and remove the cgroups of this session."""
        deadline = time.monotonic() + _CLOSE_FOR
        for pidfd in self.by_pidfd:
            process.kill(pidfd, signal.SIGKILL)
        try:
            destroy(self.session.directories, _CLOSE_FOR)
            for pidfd in self.by_pidfd:
                process.ended(pidfd, deadline - time.monotonic())
        finally:
            self.control.close()
            storage.remove(self.lock)


def _card(made: Made, *, figures: bool) -> Message:
    """Return what a container shows to other processes of this user."""
    stats = {**asdict(made.cgroup.stats()), **made.cgroup.pressure()} if figures else None
    return {
        "id": made.id,
        "pid": made.pid,
        "since": made.since,
        "about": made.about,
        "stats": stats,
        "paused": made.cgroup.is_frozen(),
    }


def main() -> NoReturn:
    """Run with the arguments SESSION LOCK and descriptors: the client's socket, and the session's
    locks, which are held by being open.
    """
    session, lock, *fds = sys.argv[1:]
    signals.reset()
    privileges.gain_power(int(fds[0]))
    for fd in map(int, fds):
        os.set_inheritable(fd, False)
    client = Channel.of(int(fds[0]))
    try:
        privileges.adopt_root()
        launcher = Launcher(client, session, lock)
    except OSError as error:
        client.send(
            {
                "op": "error",
                "step": "start the launcher",
                "reason": f"{error.strerror} {error.filename or ''}",
                "errno": error.errno,
            }
        )
        sys.exit(1)
    try:
        launcher.serve()
    finally:
        # where it fails, the lock stays, and the next session's cleanup tries again
        launcher.close()
    with suppress(OSError):
        os.unlink(lock)
    sys.exit(0)
