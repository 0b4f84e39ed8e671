"""The client's end of its launcher: started at first need, one for each process, gone with it."""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import subprocess
import sys
import threading
import weakref
from typing import TYPE_CHECKING, NamedTuple

from pytest_sandbox import sweep
from pytest_sandbox.channel import Channel, LostDescriptorsError, Message, close_all
from pytest_sandbox.errors import SetupError, UnsupportedError
from pytest_sandbox.linux import mounts, namespaces, nodes, process, systemd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.container.commit import Shelved
    from pytest_sandbox.container.network import Network
    from pytest_sandbox.launcher.plan import Plan

__all__ = ["LauncherClient", "LauncherGoneError", "current", "home", "leave", "running"]

_START = "import sys; sys.path.insert(0, {path!r}); from pytest_sandbox.launcher.serve import main; main()"
_COVERED = (
    "An outer container covers parts of its /proc, so the kernel gives no new one (mount_namespaces(7)): start it with "
    "--security-opt systempaths=unconfined (docker), --security-opt unmask=ALL (podman), or --privileged."
)
#: Steps that fail where the host cannot hold a limit, and what helps.
_LIMITS = {
    "raise ulimits": ("such a ulimit", "Start pytest with a higher hard limit (ulimit -H), or ask for less."),
    "limit the disk": (
        'disk= with storage="disk"',
        'It takes loop devices and mkfs.ext4 (Debian: e2fsprogs): install them, or use storage="memory", which limits by itself.',
    ),
}


class LauncherGoneError(SetupError):
    """The launcher was killed; :func:`current` makes a new one."""


class Ready(NamedTuple):
    """A container that the launcher has made: its id, its init's number and pidfd."""

    id: str
    pid: int
    pidfd: int


class LauncherClient:
    """One launcher; its calls are serialised, so any thread may make them."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.name = f"{self.pid:x}-{os.urandom(3).hex()}"
        sweep.sweep()
        self.hierarchy = systemd.find_groups()
        self.session = self.hierarchy.session(self.name)
        self._lock = threading.Lock()
        self._is_gone = False
        self.brought: dict[str, Shelved] = {}
        """Layers of stored commits on the shelf, by where they lie in the store."""
        self.unwanted: list[str] = []
        """Keys of layers on the shelf that nobody has any more."""
        self.networks: weakref.WeakSet[Network] = weakref.WeakSet()
        """Those that run."""
        self.channel, theirs = Channel.pair()
        self.process = _start(self.name, theirs)
        theirs.close()
        _hello, fds = self._receive()
        self.user_fd, self._rooted_fd = [*fds, -1, -1][:2]
        self.has_user_namespace = self.user_fd >= 0
        self.builder_fd = _builder(self.process.pid)
        self._mounts = mounts.watch()
        self._asked: Plan | None = None
        self._number = 0
        self._offer: Ready | None = None
        self._seen: list[nodes.Stamp] = []

    def user_of(self, plan: Plan) -> int:
        """Return the user namespace of a container's payloads; -1 where there is none."""
        return self._rooted_fd if self._rooted_fd >= 0 and not plan.is_on_host else self.user_fd

    def request(self, message: Message) -> tuple[Message, list[int]]:
        """Ask, and wait for the answer. Raises :class:`SetupError`."""
        with self._lock:
            self._send(message)
            return self._receive()

    def tell(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Say something that is not answered."""
        with self._lock:
            self._send(message, fds)

    def refused(self) -> list[str]:
        """Return the host's mounted sockets, FIFOs and directories for which containers on its root get inert and empty ones."""
        return list(self.request({"op": "refused"})[0]["paths"])

    def create(self, plan: Plan, about: Message) -> Ready:
        """Return a container: the one that was offered, without waiting, or one that is asked for.

        ``about`` is what others of this user are told of it.
        """
        while self.unwanted:
            self.tell({"op": "unshelve", "key": self.unwanted.pop()})
        with self._lock:
            offer = self._take_offer(plan)
            if offer is not None:
                self._send({"op": "taken", "id": offer.id, "about": about})
                return offer
            self._ask(plan)
            self._send({"op": "create", "plan": plan.to_json(), "number": self._number, "about": about})
            answer, fds = self._receive()
            return Ready(answer["id"], answer["pid"], fds[0])

    def prepare(self, plan: Plan) -> None:
        """Have a container of this plan made ahead."""
        with self._lock:
            if plan != self._asked:
                self._ask(plan)
                self._send({"op": "prepare", "plan": plan.to_json(), "number": self._number})

    def _ask(self, plan: Plan) -> None:
        """Ask for another plan: what was offered of the last one is not taken any more."""
        self._asked = plan
        self._number += 1
        if self._offer is not None:
            os.close(self._offer.pidfd)
            self._offer = None

    def _take_offer(self, plan: Plan) -> Ready | None:
        """Return what was made ahead of this plan, unless the host has mounted or unmounted something since."""
        changed = mounts.has_changed(self._mounts)
        while process.is_readable(self.channel.fileno()):
            self._note_offer(*self._receive_any())
        offer, self._offer = self._offer, None
        is_good = offer is not None and not changed and plan == self._asked and nodes.are_current(self._seen)
        if offer is not None and (not is_good or process.ended(offer.pidfd, 0)):
            os.close(offer.pidfd)
            return None
        return offer

    def _note_offer(self, message: Message, fds: list[int]) -> None:
        """Keep the newest offer, if it is of what was asked for last."""
        if message["number"] != self._number:
            close_all(fds)
            return
        if self._offer is not None:
            os.close(self._offer.pidfd)
        self._offer = Ready(message["id"], message["pid"], fds[0])
        self._seen = [nodes.Stamp(*one) for one in message["seen"]]

    def _send(self, message: Message, fds: Sequence[int] = ()) -> None:
        try:
            self.channel.send(message, fds)
        except OSError as error:
            raise self._gone(f" ({error.strerror})") from error

    def _receive_any(self) -> tuple[Message, list[int]]:
        try:
            return self.channel.receive()
        except LostDescriptorsError as error:
            if error.message["op"] != "ready":
                raise OSError(error.errno, error.strerror) from None
            return {**error.message, "number": -1}, []  # an offer is not what anybody waits for
        except EOFError:
            raise self._gone() from None

    def _receive(self) -> tuple[Message, list[int]]:
        """Wait for an answer; offers may come before it."""
        answer, fds = self._receive_any()
        while answer["op"] == "ready":
            self._note_offer(answer, fds)
            answer, fds = self._receive_any()
        if answer["op"] == "unsupported":
            raise UnsupportedError(answer["feature"], answer["remedy"])
        if answer["op"] == "error":
            limit = next((name for name in _LIMITS if answer["step"].startswith(name)), None)
            if limit is not None:
                what, remedy = _LIMITS[limit]
                reason = answer["step"].removeprefix(limit).lstrip(": ") or answer["reason"]
                raise UnsupportedError(f"{what} ({reason})", remedy)
            if answer["step"] == "make a user namespace":
                from pytest_sandbox import host

                host.require("user namespace", "a container without root")
            if answer["step"] == "mount own" and answer["errno"] in {errno.EPERM, errno.EACCES}:
                raise UnsupportedError("a container in this container", _COVERED)
            raise _explained(answer)
        return answer, fds

    def _gone(self, why: str = "") -> LauncherGoneError:
        """Note that the launcher is dead, or dying: it closes its descriptors before it can be waited for."""
        self._is_gone = True
        return LauncherGoneError("ask the launcher", f"the launcher is gone{why}", "Start a new container: it gets a new launcher.")

    @property
    def is_alive(self) -> bool:
        """Whether the launcher's process still runs."""
        return not self._is_gone and self.process.poll() is None

    def close(self) -> None:
        """End the launcher, and with it every container, and wait until nothing of it is left."""
        self.channel.close()
        self.process.wait()

    def descriptors(self) -> list[int]:
        """Return what this process has open of the launcher: nothing that a fork may have inside a container."""
        offered = self._offer.pidfd if self._offer else -1
        held = (self.channel.fileno(), self.user_fd, self._rooted_fd, self.builder_fd, self._mounts, offered)
        return [fd for fd in held if fd >= 0]

    def abandon_networks(self) -> None:
        """Close this process's descriptors of its networks."""
        for network in list(self.networks) if self.networks else ():
            network.abandon()

    def abandon(self) -> None:
        """Close this process's descriptors of the launcher without a word: it is dead, or another process's."""
        self.abandon_networks()
        close_all([fd for fd in self.descriptors() if fd != self.channel.fileno()])
        self.channel.close()
        self.process.returncode = 0


def _explained(answer: Message) -> UnsupportedError | SetupError:
    """Return the error for a step that failed: who said no, where it was not the kernel for a reason of its own."""
    from pytest_sandbox.host import kernel
    from pytest_sandbox.host.trial import Trial

    remedy = kernel.denied(Trial(answer["reason"], answer["errno"] or errno.EIO))
    if remedy:
        return UnsupportedError(f"a container here ({answer['step']}: {answer['reason']})", remedy)
    return SetupError(answer["step"], answer["reason"])


def _builder(pid: int) -> int:
    """Return the user namespace that the launcher builds in; -1 where it is this process's own."""
    return -1 if namespaces.identity("user", pid) == namespaces.identity("user") else namespaces.open_of(pid, "user")


def _start(name: str, channel: Channel) -> subprocess.Popen[bytes]:
    lock_path = sweep.lock_path(name)
    low = os.open(lock_path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    lock = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 3)  # a process without stdin has low numbers free, which the launcher's own stdin takes
    os.close(low)
    fcntl.flock(lock, fcntl.LOCK_EX)
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    fds = [channel.fileno(), lock]
    try:
        return _spawn([sys.executable, "-I", "-S", "-c", _START.format(path=package), name, lock_path, *map(str, fds)], fds)
    finally:
        os.close(lock)


def _spawn(command: list[str], fds: list[int]) -> subprocess.Popen[bytes]:
    """Start the launcher with its two descriptors, in a session of its own, so that no Ctrl-C reaches it."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=None if os.environ.get("PYTEST_SANDBOX_DEBUG") else subprocess.DEVNULL,
        pass_fds=fds,
        start_new_session=True,
        cwd="/",
    )


_current: LauncherClient | None = None
_home = object()
_left: list[LauncherClient | None] = []  # what is closed already must not be closed again, when its object goes
_starting = threading.Lock()


def current() -> LauncherClient:
    """Return this process's launcher, started where there is none, or where it died."""
    global _current  # noqa: PLW0603 - one launcher a process is what makes containers cheap
    with _starting:
        if _current is None or _current.pid != os.getpid() or not _current.is_alive:
            if _current is not None:  # it died, or is the parent's
                if _current.pid == os.getpid():
                    _current.process.wait()
                _current.abandon()
            _current = LauncherClient()
        return _current


def running() -> LauncherClient | None:
    """Return the launcher if there is one."""
    return _current


def home() -> object:
    """Return what is the same object as long as containers that this process has started are its own: not in a fork that is inside one."""
    return _home


def leave() -> None:
    """Have nothing to do with the launcher and its containers any more, in a fork whose descriptors of them are closed."""
    global _current, _home
    if _current is not None:
        _current.abandon_networks()
    _left.append(_current)
    _current, _home = None, object()


@atexit.register
def _close_at_exit() -> None:
    global _current
    launcher, _current = _current, None
    if launcher is not None and launcher.pid == os.getpid():
        launcher.close()
