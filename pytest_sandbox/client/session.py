"""The client's end of its launcher: started at first need, one for each process, gone with it."""

from __future__ import annotations

import atexit
import errno
import os
import secrets
import signal
import subprocess
import sys
import threading
import weakref
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pytest_sandbox.client import cleanup
from pytest_sandbox.client.requests import Descriptors, LauncherGoneError, Requests
from pytest_sandbox.client.snapshots import Snapshot, Snapshots
from pytest_sandbox.errors import ContainerStopped, SandboxError, SetupError, UnsupportedError
from pytest_sandbox.linux import file_lock, file_mounts, mounts, namespaces, process
from pytest_sandbox.linux.cgroup import systemd
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.runtime.protocol import Channel, Message, close_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.linux.cgroup import Hierarchy
    from pytest_sandbox.runtime.spec import Spec

__all__ = ["LauncherClient", "LauncherGoneError", "current", "home", "leave", "running"]

_START = (
    "import sys; sys.path.insert(0, {path!r}); from pytest_sandbox.launcher.main import "
    "main; main()"
)
_COVERED = (
    "An outer container covers parts of its /proc, so the kernel gives no new one "
    "(mount_namespaces(7)): start it with "
    "--security-opt systempaths=unconfined (docker), --security-opt unmask=ALL (podman), or "
    "--privileged."
)
#: Seconds for the launcher to end its containers.
_PATIENCE = 60.0
#: Steps that fail where the host cannot hold a limit, and what helps.
_LIMITS = {
    "raise ulimits": (
        "such a ulimit",
        "Start pytest with a higher hard limit (ulimit -H), or ask for less.",
    ),
    "limit the disk": (
        'disk= with storage="disk"',
        (
            "It takes loop devices and mkfs.ext4 (Debian: e2fsprogs): install them, or use "
            'storage="memory", which limits by itself.'
        ),
    ),
}


class Abandoned(Protocol):
    """What has descriptors of the launcher, such as a network."""

    def abandon(self) -> None:
        """Close the descriptors, without a word to the launcher."""


class Ready(NamedTuple):
    """A container that the launcher has made: its id, its init's number and pidfd."""

    id: str
    pid: int
    pidfd: int


class LauncherClient:
    """One launcher; its calls are serialised, so any thread may make them. :meth:`await_start`
    comes before any other.
    """

    def __init__(self, hierarchy: Hierarchy) -> None:
        """Start the launcher with signals deferred: nothing that is opened here can be lost."""
        self.pid = os.getpid()
        self.name = f"{self.pid:x}-{secrets.token_hex(4)}"
        self.hierarchy = hierarchy
        self.session = hierarchy.attach(self.name)
        self.brought: dict[str, Snapshot] = {}
        """Layers of stored commits in the layer holder, by where they lie in the store."""
        self.snapshots = Snapshots()
        self.networks: weakref.WeakSet[Abandoned] = weakref.WeakSet()
        """Those that run."""
        self.user_fd = self._rooted_fd = self.builder_fd = -1
        self._asked: Spec | None = None
        self._number = 0
        self._offer: Ready | None = None
        self._seen: list[file_mounts.Stamp] = []
        self._is_ready = False
        self.channel, theirs = Channel.pair()
        try:
            self.process = _start(self.name, hierarchy, theirs)
            self.pidfd = os.pidfd_open(self.process.pid)
            self._mounts = mounts.watch()
        except BaseException:
            self.channel.close()
            raise
        finally:
            theirs.close()
        self._requests = Requests(self.channel, self._note_offer)

    def await_start(self) -> None:
        """Wait until the launcher is ready to make containers.

        Raises what it says where it cannot.
        """
        if not self._is_ready:
            try:
                answer, _fds = self._requests.wait(None, self._note_start)
                _raise_for(answer)
            except Exception:
                self._requests.is_gone = True
                raise

    def _note_start(self, _hello: Message, fds: Descriptors) -> None:
        self.user_fd, self._rooted_fd = fds.take(), fds.take()
        self.builder_fd = _builder(self.process.pid)
        self._is_ready = True

    @property
    def has_user_namespace(self) -> bool:
        """Whether payloads have a user namespace of their own."""
        return self.user_fd >= 0

    def user_of(self, spec: Spec) -> int:
        """Return the user namespace of a container's payloads; -1 where there is none."""
        return self._rooted_fd if self._rooted_fd >= 0 and not spec.is_on_host else self.user_fd

    def request(self, message: Message) -> tuple[Message, Descriptors]:
        """Ask, and wait for the answer.

        Raises :class:`SetupError`, and :class:`ContainerStopped` for a container that has ended.
        """
        answer, fds = self._requests.ask(message)
        _raise_for(answer, message.get("id", ""))
        return answer, fds

    def renew(self, message: Message, adopt: Callable[[Message, Descriptors], None]) -> None:
        """Ask for a new init of a container, as :meth:`request`; ``adopt`` is called with the
        answer, signals deferred.
        """
        answer, _fds = self._requests.in_turn(lambda: self._requests.ask_in_turn(message, adopt))
        _raise_for(answer, message["id"])

    def tell(self, message: Message) -> None:
        """Say something that is not answered; the caller defers signals."""
        self._requests.tell(message)

    def refused(self) -> list[str]:
        """Return the host's mounted sockets, FIFOs and directories for which containers on its root
        get inert and empty ones.
        """
        return list(self.request({"op": "refused"})[0]["paths"])

    def create(self, spec: Spec, about: Message, adopt: Callable[[Ready], None]) -> None:
        """Make a container: the one that was offered, without waiting, or one that is asked for.

        ``about`` is what others of this user are told of it. ``adopt`` is called with it, signals
        deferred: from then on it has an owner.
        """
        self.snapshots.collect()
        while self.snapshots.unused:
            with Deferred():
                self.tell({"op": "unshelve", "key": self.snapshots.unused.pop()})
        answer = self._requests.in_turn(lambda: self._create(spec, about, adopt))
        if answer is not None:
            _raise_for(answer)

    def _create(self, spec: Spec, about: Message, adopt: Callable[[Ready], None]) -> Message | None:
        with Deferred():
            offer = self._take_offer(spec)
            if offer is not None:
                try:
                    self._requests.send_deferred({"op": "taken", "id": offer.id, "about": about})
                except LauncherGoneError:
                    os.close(offer.pidfd)
                    raise
                adopt(offer)
                return None
            self._ask(spec)
        message = {"op": "create", "spec": spec.to_json(), "number": self._number, "about": about}
        answer, _fds = self._requests.ask_in_turn(
            message, lambda answer, fds: adopt(Ready(answer["id"], answer["pid"], fds.take()))
        )
        return answer

    def prepare(self, spec: Spec) -> None:
        """Have a container of this spec made ahead."""
        self._requests.in_turn(lambda: self._prepare(spec))

    def _prepare(self, spec: Spec) -> None:
        if spec != self._asked:
            with Deferred():
                self._ask(spec)
                self._requests.send_deferred(
                    {"op": "prepare", "spec": spec.to_json(), "number": self._number}
                )

    def _ask(self, spec: Spec) -> None:
        """Ask for another spec: what was offered of the last one is not taken any more."""
        self._asked = spec
        self._number += 1
        self._drop_offer()

    def _drop_offer(self) -> None:
        offer, self._offer = self._offer, None
        if offer is not None:
            os.close(offer.pidfd)

    def _take_offer(self, spec: Spec) -> Ready | None:
        """Return what was made ahead of this spec, unless the host has mounted or unmounted
        something since.
        """
        changed = mounts.has_changed(self._mounts)
        self._requests.receive_offers()
        if (
            changed
            or spec != self._asked
            or self._offer is None
            or not file_mounts.are_current(self._seen)
            or process.ended(self._offer.pidfd, 0)
        ):
            self._drop_offer()
        offer, self._offer = self._offer, None
        return offer

    def _note_offer(self, message: Message, fds: Descriptors) -> None:
        """Keep the newest offer, if it is of what was asked for last."""
        if message["number"] == self._number:
            self._drop_offer()
            self._offer = Ready(message["id"], message["pid"], fds.take())
            self._seen = [file_mounts.Stamp(*one) for one in message["seen"]]

    @property
    def is_alive(self) -> bool:
        """Whether the launcher's process still runs.

        Not by Popen.poll(), which keeps its lock for ever where a signal handler's exception
        interrupts it.
        """
        return not self._requests.is_gone and not process.ended(self.pidfd, 0)

    def close(self) -> None:
        """End the launcher, and with it every container, and wait until nothing of it is left;
        after 60 seconds, kill it.
        """
        self.channel.close()
        if not process.ended(self.pidfd, _PATIENCE):
            process.kill(
                self.pidfd, signal.SIGKILL
            )  # what it leaves is removed by the next session
            process.ended(self.pidfd, _PATIENCE)
        with Deferred():
            self.process.poll()

    def descriptors(self) -> list[int]:
        """Return what this process has open of the launcher: nothing that a fork may have inside a
        container.
        """
        offered = self._offer.pidfd if self._offer else -1
        held = (
            self.channel.fileno(),
            self.pidfd,
            self.user_fd,
            self._rooted_fd,
            self.builder_fd,
            self._mounts,
            offered,
        )
        return [*(fd for fd in held if fd >= 0), *self.snapshots.descriptors()]

    def abandon_networks(self) -> None:
        """Close this process's descriptors of its networks."""
        for network in list(self.networks) if self.networks else ():
            network.abandon()

    def abandon(self) -> None:
        """Close this process's descriptors of the launcher without a word: it is dead, or another
        process's.
        """
        self.abandon_networks()
        self._requests.is_gone = True
        with Deferred():
            close_all([fd for fd in self.descriptors() if fd != self.channel.fileno()])
            self.pidfd = self.user_fd = self._rooted_fd = self.builder_fd = self._mounts = -1
            self._offer = None
            self.snapshots.forget()
            self.channel.close()
        self.process.returncode = 0


def _raise_for(answer: Message, container: str = "") -> None:
    """Raise the error that an answer is, if it is one: about a container, where one was named."""
    if answer["op"] == "unsupported":
        raise UnsupportedError(answer["feature"], answer["remedy"])
    if answer["op"] == "ended":
        raise ContainerStopped.ended(container)
    if answer["op"] == "error":
        raise _failure(answer)


def _failure(answer: Message) -> SandboxError:
    """Return the error for a step that failed."""
    limit = next((name for name in _LIMITS if answer["step"].startswith(name)), None)
    if limit is not None:
        what, remedy = _LIMITS[limit]
        reason = answer["step"].removeprefix(limit).lstrip(": ") or answer["reason"]
        return UnsupportedError(f"{what} ({reason})", remedy)
    if answer["step"] == "make a user namespace":
        from pytest_sandbox import host

        host.require("user namespace", "a container without root")
    if answer["step"] == "mount own" and answer["errno"] in {errno.EPERM, errno.EACCES}:
        return UnsupportedError("a container in this container", _COVERED)
    return _explained(answer)


def _explained(answer: Message) -> UnsupportedError | SetupError:
    """Return the error for a step that failed: who said no, where it was not the kernel for a
    reason of its own.
    """
    from pytest_sandbox.host import kernel
    from pytest_sandbox.host.trial import Trial

    remedy = kernel.denied(Trial(answer["reason"], answer["errno"] or errno.EIO))
    if remedy:
        return UnsupportedError(f"a container here ({answer['step']}: {answer['reason']})", remedy)
    return SetupError(answer["step"], answer["reason"])


def _builder(pid: int) -> int:
    """Return the user namespace that the launcher builds in; -1 where it is this process's own."""
    return (
        -1
        if namespaces.identity("user", pid) == namespaces.identity("user")
        else namespaces.open_namespace(pid, "user")
    )


def _start(name: str, hierarchy: Hierarchy, channel: Channel) -> subprocess.Popen[bytes]:
    """Make and lock the session's lock file and cgroups, and start its launcher, which inherits the
    locks.
    """
    path = cleanup.lock_path(name)
    lock = file_lock.create_locked(path)
    try:
        os.write(lock, f"process {os.getpid()}\n".encode())
        session = hierarchy.session(name)
        try:
            fds = [channel.fileno(), lock, *session.locks]
            return _spawn(name, path, fds)
        except BaseException:
            session.close()
            raise
        finally:
            session.close_locks()
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(lock)


def _spawn(name: str, lock: str, fds: list[int]) -> subprocess.Popen[bytes]:
    """Start the launcher with its descriptors, in a session of its own, so that no Ctrl-C reaches
    it.
    """
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _START.format(path=package), name, lock, *map(str, fds)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=None if os.environ.get("PYTEST_SANDBOX_DEBUG") else subprocess.DEVNULL,
        pass_fds=fds,
        start_new_session=True,
        cwd="/",
    )


_current: LauncherClient | None = None
_home = object()
_left: list[
    LauncherClient | None
] = []  # what is closed already must not be closed again, when its object goes
_starting = (
    threading.RLock()
)  # reentrant: a signal handler that makes a container may interrupt the start


def current() -> LauncherClient:
    """Return this process's launcher, started where there is none, or where it died."""
    with _starting:
        if _current is None or _current.pid != os.getpid() or not _current.is_alive:
            _replace()
        launcher = _current
        assert launcher is not None
        launcher.await_start()
        return launcher


def _replace() -> None:
    """Start a launcher, in the place of one that has died or is the parent process's."""
    global _current  # noqa: PLW0603 - one launcher a process is what makes containers cheap
    old, _current = _current, None
    if old is not None:
        if old.pid == os.getpid():
            old.close()
        old.abandon()
    cleanup.sweep()
    hierarchy = systemd.find_delegated_hierarchy()
    with Deferred():
        if _current is None:  # a signal handler may have started one meanwhile
            _current = LauncherClient(hierarchy)


def running() -> LauncherClient | None:
    """Return the launcher if there is one."""
    return _current


def home() -> object:
    """Return what is the same object as long as containers that this process has started are its
    own: not in a fork that is inside one.
    """
    return _home


def leave() -> None:
    """Have nothing to do with the launcher and its containers any more, in a fork whose descriptors
    of them are closed.
    """
    global _current, _home, _starting
    if _current is not None:
        _current.abandon_networks()
    _left.append(_current)
    _current, _home, _starting = None, object(), threading.RLock()


@atexit.register
def _close_at_exit() -> None:
    global _current
    launcher, _current = _current, None
    if launcher is not None and launcher.pid == os.getpid():
        launcher.close()
