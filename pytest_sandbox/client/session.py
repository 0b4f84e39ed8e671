"""The client's end of its launcher: one for each process, started when the first container is."""

from __future__ import annotations

import atexit
import os
import secrets
import signal
import threading
import weakref
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pytest_sandbox.client import cleanup, start
from pytest_sandbox.client.errors import failed_start, raise_for
from pytest_sandbox.client.requests import Descriptors, LauncherGoneError, Requests
from pytest_sandbox.client.snapshots import Snapshot, Snapshots
from pytest_sandbox.linux import file_mounts, mounts, namespaces, process
from pytest_sandbox.linux.cgroup import systemd
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.runtime.protocol import Channel, Message, close_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.linux.cgroup import Hierarchy
    from pytest_sandbox.runtime.spec import Spec

__all__ = [
    "CreatedContainer",
    "LauncherClient",
    "LauncherGoneError",
    "current",
    "fork_token",
    "leave_in_fork",
    "running",
]

#: Seconds for the launcher to end its containers.
_CLOSE_TIMEOUT = 60.0


class Abandoned(Protocol):
    """An object with descriptors of the launcher, such as a network."""

    def abandon(self) -> None:
        """Close the descriptors, and tell the launcher nothing."""


class CreatedContainer(NamedTuple):
    """A container that the launcher has created: its id, and the PID and pidfd of its init."""

    id: str
    pid: int
    pidfd: int


class LauncherClient:
    """The connection to one launcher. Any thread may call it; requests are serialized.

    :meth:`await_start` comes before any other call.
    """

    def __init__(self, hierarchy: Hierarchy) -> None:
        """Start the launcher. The caller defers signals, so that no descriptor is lost."""
        self.pid = os.getpid()
        self.name = f"{self.pid:x}-{secrets.token_hex(4)}"
        self.hierarchy = hierarchy
        #: Stored layers that were copied to the layer holder, by their path in the store.
        self.copied_layers: dict[str, Snapshot] = {}
        self.snapshots = Snapshots()
        #: The networks that run.
        self.networks: weakref.WeakSet[Abandoned] = weakref.WeakSet()
        self.user_fd = self._root_user_fd = self.builder_fd = -1
        self._is_started = False
        # The last spec, and the container of it that the launcher has prewarmed.
        self._spec: Spec | None = None
        self._spec_id = 0
        self._prewarmed: CreatedContainer | None = None
        self._file_stamps: list[file_mounts.Stamp] = []
        self.channel, theirs = Channel.pair()
        try:
            self.process = start.start_launcher(self.name, hierarchy, theirs)
            self.session = hierarchy.attach(self.name)
            self.pidfd = os.pidfd_open(self.process.pid)
            self._mounts = mounts.watch()
        except BaseException:
            self.channel.close()
            raise
        finally:
            theirs.close()
        self._requests = Requests(self.channel, self._keep_prewarmed)

    def await_start(self) -> None:
        """Wait until the launcher is ready; raise the error that it sends if it cannot start."""
        if not self._is_started:
            try:
                answer, _fds = self._requests.wait(None, self._note_start)
                raise_for(answer)
            except Exception:
                self._requests.is_gone = True
                raise

    def _note_start(self, _hello: Message, fds: Descriptors) -> None:
        self.user_fd, self._root_user_fd = fds.take(), fds.take()
        self.builder_fd = _builder_namespace(self.process.pid)
        self._is_started = True

    @property
    def has_user_namespace(self) -> bool:
        """Whether payloads have a user namespace of their own."""
        return self.user_fd >= 0

    def user_namespace_for(self, spec: Spec) -> int:
        """Return the user namespace of a container's payloads; -1 if there is none."""
        is_mapped = self._root_user_fd >= 0 and not spec.is_on_host
        return self._root_user_fd if is_mapped else self.user_fd

    # -- requests

    def request(self, message: Message) -> tuple[Message, Descriptors]:
        """Send a request, and return the answer.

        Raises :class:`SetupError`, :class:`UnsupportedError`, and :class:`ContainerStopped` for a
        container that has ended.
        """
        answer, fds = self._requests.ask(message)
        raise_for(answer, message.get("id", ""))
        return answer, fds

    def renew(self, message: Message, adopt: Callable[[Message, Descriptors], None]) -> None:
        """Request a new init for a container; ``adopt`` is called with the answer, with signals
        deferred. Raises as :meth:`request`.
        """
        requests = self._requests
        answer, _fds = requests.serialized(lambda: requests.ask_serialized(message, adopt))
        raise_for(answer, message["id"])

    def tell(self, message: Message) -> None:
        """Send a message that is not answered; the caller defers signals."""
        self._requests.tell(message)

    def unreachable_paths(self) -> list[str]:
        """Return the host's mounted sockets, FIFOs and directories that containers on its root do
        not reach.
        """
        return list(self.request({"op": "unreachable"})[0]["paths"])

    # -- containers

    def create(
        self, spec: Spec, metadata: Message, adopt: Callable[[CreatedContainer], None]
    ) -> None:
        """Claim the prewarmed container of this spec, without waiting, or request a new one.

        ``metadata`` is what other processes of the user are told of it. ``adopt`` is called with
        the container, with signals deferred, so that it has an owner at every moment.
        """
        self.snapshots.collect()
        while self.snapshots.unused:
            with Deferred():
                self.tell({"op": "release_layer", "key": self.snapshots.unused.pop()})
        answer = self._requests.serialized(lambda: self._create(spec, metadata, adopt))
        if answer is not None:
            raise_for(answer)

    def _create(
        self, spec: Spec, metadata: Message, adopt: Callable[[CreatedContainer], None]
    ) -> Message | None:
        with Deferred():
            prewarmed = self._take_prewarmed(spec)
            if prewarmed is not None:
                self._claim(prewarmed, metadata)
                adopt(prewarmed)
                return None
            self._change_spec(spec)
        message = {
            "op": "create",
            "spec": spec.to_json(),
            "spec_id": self._spec_id,
            "metadata": metadata,
        }
        answer, _fds = self._requests.ask_serialized(
            message,
            lambda answer, fds: adopt(CreatedContainer(answer["id"], answer["pid"], fds.take())),
        )
        return answer

    def _claim(self, prewarmed: CreatedContainer, metadata: Message) -> None:
        message = {"op": "claim", "id": prewarmed.id, "metadata": metadata}
        try:
            self._requests.send_deferred(message)
        except LauncherGoneError:
            os.close(prewarmed.pidfd)
            raise

    def prewarm(self, spec: Spec) -> None:
        """Have the launcher prewarm a container of this spec."""
        self._requests.serialized(lambda: self._prewarm(spec))

    def _prewarm(self, spec: Spec) -> None:
        if spec != self._spec:
            with Deferred():
                self._change_spec(spec)
                message = {"op": "prewarm", "spec": spec.to_json(), "spec_id": self._spec_id}
                self._requests.send_deferred(message)

    def _change_spec(self, spec: Spec) -> None:
        """Note another spec: a prewarmed container of an earlier one is not taken any more."""
        self._spec = spec
        self._spec_id += 1
        self._drop_prewarmed()

    def _keep_prewarmed(self, message: Message, fds: Descriptors) -> None:
        """Keep the container that the launcher has prewarmed, if it is of the last spec."""
        if message["spec_id"] == self._spec_id:
            self._drop_prewarmed()
            self._prewarmed = CreatedContainer(message["id"], message["pid"], fds.take())
            self._file_stamps = [file_mounts.Stamp(*stamp) for stamp in message["file_stamps"]]

    def _drop_prewarmed(self) -> None:
        prewarmed, self._prewarmed = self._prewarmed, None
        if prewarmed is not None:
            os.close(prewarmed.pidfd)

    def _take_prewarmed(self, spec: Spec) -> CreatedContainer | None:
        """Return the prewarmed container, if a new one of this spec would be the same: the host
        has mounted nothing since, and the files that it was made from are the same.
        """
        # Before what the launcher sent is read: it may have seen the new mounts already.
        has_changed = mounts.has_changed(self._mounts)
        self._requests.receive_prewarmed()
        if (
            has_changed
            or spec != self._spec
            or self._prewarmed is None
            or not file_mounts.are_current(self._file_stamps)
            or process.ended(self._prewarmed.pidfd, 0)
        ):
            self._drop_prewarmed()
        prewarmed, self._prewarmed = self._prewarmed, None
        return prewarmed

    # -- the end

    @property
    def is_alive(self) -> bool:
        """Whether the launcher's process runs."""
        # Not Popen.poll(): an exception of a signal handler may leave its lock locked for ever.
        return not self._requests.is_gone and not process.ended(self.pidfd, 0)

    def close(self) -> None:
        """End the launcher with all its containers, and wait for it; kill it after 60 seconds."""
        self.channel.close()
        if not process.ended(self.pidfd, _CLOSE_TIMEOUT):
            process.kill(self.pidfd, signal.SIGKILL)  # the next session removes what it leaves
            process.ended(self.pidfd, _CLOSE_TIMEOUT)
        with Deferred():
            self.process.poll()

    def descriptors(self) -> list[int]:
        """Return this process's descriptors of the launcher, which a fork inside must not have."""
        held = (
            self.channel.fileno(),
            self.pidfd,
            self.user_fd,
            self._root_user_fd,
            self.builder_fd,
            self._mounts,
            self._prewarmed.pidfd if self._prewarmed else -1,
        )
        return [*(fd for fd in held if fd >= 0), *self.snapshots.descriptors()]

    def abandon_networks(self) -> None:
        """Close this process's descriptors of its networks."""
        for network in list(self.networks) if self.networks else ():
            network.abandon()

    def abandon(self) -> None:
        """Close this process's descriptors, and tell the launcher nothing: it has ended, or
        belongs to another process.
        """
        self.abandon_networks()
        self._requests.is_gone = True
        with Deferred():
            close_all([fd for fd in self.descriptors() if fd != self.channel.fileno()])
            self.pidfd = self.user_fd = self._root_user_fd = self.builder_fd = self._mounts = -1
            self._prewarmed = None
            self.snapshots.forget()
            self.channel.close()
        self.process.returncode = 0


def _builder_namespace(pid: int) -> int:
    """Return the user namespace in which the launcher creates containers; -1 for this process's."""
    is_own = namespaces.identity("user", pid) == namespaces.identity("user")
    return -1 if is_own else namespaces.open_namespace(pid, "user")


_current: LauncherClient | None = None
_fork_token = object()
# A launcher whose descriptors are closed: if it were collected, its channel would close another
# object's descriptor of the same number.
_left: list[LauncherClient | None] = []
# Reentrant: a signal handler may create a container while the launcher starts.
_start_lock = threading.RLock()


def current() -> LauncherClient:
    """Return this process's launcher; start one if there is none, or if it has died."""
    with _start_lock:
        if _current is None or _current.pid != os.getpid() or not _current.is_alive:
            _replace()
        launcher = _current
        assert launcher is not None
        launcher.await_start()
        return launcher


def _replace() -> None:
    """Start a launcher in place of one that has died or is the parent process's."""
    global _current  # noqa: PLW0603 - one launcher for each process is what makes containers cheap
    old, _current = _current, None
    if old is not None:
        if old.pid == os.getpid():
            old.close()
        old.abandon()
    try:
        cleanup.remove_leftovers()
        hierarchy = systemd.find_delegated_hierarchy()
        with Deferred():
            if _current is None:  # a signal handler may have started one meanwhile
                _current = LauncherClient(hierarchy)
    except OSError as error:
        raise failed_start(error) from error


def running() -> LauncherClient | None:
    """Return this process's launcher if there is one."""
    return _current


def fork_token() -> object:
    """Return an object that is another one in a fork inside a container.

    A container of the same token belongs to this process.
    """
    return _fork_token


def leave_in_fork() -> None:
    """Forget the launcher and its containers, in a fork that has closed their descriptors."""
    global _current, _fork_token, _start_lock
    if _current is not None:
        _current.abandon_networks()
    _left.append(_current)
    _current, _fork_token, _start_lock = None, object(), threading.RLock()


@atexit.register
def _close_at_exit() -> None:
    global _current
    launcher, _current = _current, None
    if launcher is not None and launcher.pid == os.getpid():
        launcher.close()
