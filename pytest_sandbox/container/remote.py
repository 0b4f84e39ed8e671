"""Containers of other processes of this user: list them, find one, and use it."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NoReturn, Self

from pytest_sandbox.client import cleanup, session
from pytest_sandbox.client.requests import Descriptors
from pytest_sandbox.container.handle import Handle, without_init
from pytest_sandbox.container.rootfs import Rootfs
from pytest_sandbox.errors import ContainerStopped, SandboxError
from pytest_sandbox.launcher import control_socket
from pytest_sandbox.linux.cgroup import Cgroup
from pytest_sandbox.outcome import Stats
from pytest_sandbox.runtime import request_socket
from pytest_sandbox.runtime.protocol import Message, close_all
from pytest_sandbox.runtime.spec import Spec
from pytest_sandbox.settings.settings import KEYS, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["RemoteContainer", "RemoteHandle", "find", "list_containers", "matching", "open_handle"]

#: Seconds for a launcher to answer.
_TIMEOUT = 5.0
_PS = "`pytest-sandbox ps` lists running containers."


@dataclass(frozen=True, slots=True)
class RemoteContainer:
    """A running container of any process of this user, as its launcher describes it.

    ``pid`` is the PID of its init, ``since`` the time when it was started (seconds since the
    epoch), ``label`` its name. ``stats`` is None unless it was asked for.
    """

    session: str
    id: str
    pid: int
    since: float
    label: str
    settings: Settings
    stats: Stats | None = None
    paused: bool = False


def list_containers(*, stats: bool = False) -> list[RemoteContainer]:
    """Return the running containers of this user, oldest first; with ``stats``, also what each
    uses.
    """
    found = [one for session in _sessions() for one in _ask_all(session, stats=stats)]
    return sorted(found, key=lambda one: (one.since, one.id))


def _sessions() -> Iterator[str]:
    """Yield the sessions that have a control socket; connecting tells whether the launcher is
    alive.
    """
    yield from (name for name in sorted(cleanup.sessions()) if os.path.exists(_socket_of(name)))


def _socket_of(session: str) -> str:
    return os.path.join(cleanup.session_directory(session), control_socket.NAME)


def _ask_all(session: str, *, stats: bool) -> list[RemoteContainer]:
    try:
        answer, fds = _ask(session, {"op": "list", "stats": stats})
        close_all(fds)
    except (OSError, EOFError):  # it has ended; the cleanup of the next session removes its socket
        return []
    return [_read(session, entry) for entry in answer["containers"]]


def _read(session: str, entry: Message) -> RemoteContainer:
    about = entry["about"] or {"label": "", "settings": {}}
    settings = _read_settings(about["settings"])
    return RemoteContainer(
        session,
        entry["id"],
        entry["pid"],
        entry["since"],
        about["label"],
        settings,
        None if entry["stats"] is None else without_init(_read_stats(entry["stats"]), settings),
        bool(entry.get("paused")),
    )


def _read_settings(answer: Message) -> Settings:
    """Read settings, without those that another version of this library has given to the owner."""
    return Settings(**{name: value for name, value in answer.items() if name in KEYS})


def _read_stats(answer: Message) -> Stats:
    """Read figures; the owner may run another version of this library, which has other ones."""
    return Stats(**{one.name: answer.get(one.name) for one in fields(Stats)})


def _ask(session: str, message: Message) -> tuple[Message, list[int]]:
    """Ask the launcher of a session.

    Raises :class:`OSError` or :class:`EOFError` if it has ended or does not answer.
    """
    return request_socket.ask(_socket_of(session), message, timeout=_TIMEOUT)


def matching(name: str, ids: list[str], labels: list[str]) -> list[str]:
    """Return the ids that ``name`` may mean: those whose id or label it is, or else those that
    start with it; none for an empty name.
    """
    exact = [id_ for id_, label in zip(ids, labels, strict=True) if name and name in (id_, label)]
    return exact or [id_ for id_ in ids if name and id_.startswith(name)]


def find(name: str, among: list[RemoteContainer] | None = None) -> RemoteContainer:
    """Return the container whose id or label is ``name``, or whose id starts with it.

    ``among`` defaults to all running containers. Raises :class:`SandboxError` for none and for
    several.
    """
    known = list_containers() if among is None else among
    ids = matching(name, [one.id for one in known], [one.label for one in known])
    if len(ids) == 1:
        return next(one for one in known if one.id == ids[0])
    if ids:
        raise SandboxError(
            f"the ids of {len(ids)} containers start with {name!r}: {', '.join(ids)}. Write more "
            "of the id."
        )
    raise SandboxError(f"there is no running container {name!r}. {_PS}")


def open_handle(remote: RemoteContainer) -> RemoteHandle:
    """Return a handle of a container of another process.

    Raises :class:`ContainerStopped` if it has ended.
    """
    answer, fds = _ask_owner(remote, {"op": "enter", "id": remote.id})
    return RemoteHandle(remote, answer, *fds)


def _ask_owner(remote: RemoteContainer, message: Message) -> tuple[Message, list[int]]:
    try:
        answer, fds = _ask(remote.session, message)
    except (OSError, EOFError) as error:
        raise ContainerStopped(
            f"the container {remote.id} has ended, and its session with it. {_PS}"
        ) from error
    if answer["op"] == "error":
        close_all(fds)
        raise ContainerStopped(f"the container {remote.id} {answer['reason']}. {_PS}")
    return answer, fds


def _with_missing(exists: list[bool], fds: tuple[int, ...]) -> tuple[int, int]:
    """Return two descriptors, -1 for each that does not exist."""
    left = iter(fds)
    own, builder = (next(left) if one else -1 for one in exists)
    return own, builder


class _RemoteCgroup(Cgroup):
    """What a launcher tells other processes of a container's cgroup: how to join it."""

    def __init__(self, id: str, joins: list[str]) -> None:  # noqa: A002 - as the base class
        super().__init__(id)
        self._joins = tuple(joins)

    def join_paths(self) -> tuple[str, ...]:
        return self._joins


class _RemoteRootfs(Rootfs):
    """What an owner tells of the root of its container: commands of other processes get the same
    environment and user.
    """

    def __init__(self, settings: Settings, about: Message) -> None:
        self.settings = settings
        self.image = None
        self.held = -1
        self._about = about

    @property
    def user(self) -> str | None:
        return self._about["user"] or None

    def environment(self, hostname: str) -> dict[str, str]:
        env = self._about["env"]
        return super().environment(hostname) if env is None else {**env, "HOSTNAME": hostname}


class RemoteHandle(Handle):
    """The handle of a container that another process owns: closing it leaves the container
    running.
    """

    def __init__(
        self, remote: RemoteContainer, answer: Message, pidfd: int, *user_namespaces: int
    ) -> None:
        super().__init__(remote.settings)
        self.id, self.label, self.pidfd, self.pid = remote.id, remote.label, pidfd, answer["pid"]
        self.spec = Spec.from_json(answer["spec"])
        self.rootfs = _RemoteRootfs(remote.settings, answer["about"])
        self.cgroup = _RemoteCgroup(remote.id, answer["joins"])
        self.state = "running"
        self.owner, self.home = os.getpid(), session.fork_token()
        self._remote = remote
        self._user_namespaces = _with_missing(answer["user_namespaces"], user_namespaces)
        self._closing = threading.Lock()

    def start(self) -> NoReturn:
        """Raise :class:`ContainerStopped`: the container has been started."""
        raise ContainerStopped(f"{self.name} is {self.status}: it starts once.")

    def close(self) -> None:
        """Close the descriptors of the container."""
        with self._closing:
            if self.state != "running":
                return
            self.state = "stopped"
        for log in self.logs:
            log.close()
        close_all(self.descriptors())

    def ready(self) -> Self:
        """Return the handle. Raises :class:`ContainerStopped` unless the container runs and is not
        paused.
        """
        self.running()
        if self._describe().paused:
            raise ContainerStopped(
                f"the container {self.id} is paused. Its owner can unpause() it."
            )
        return self

    def descriptors(self) -> list[int]:
        """Return the descriptors of the container in this process."""
        return [fd for fd in (self.pidfd, *self._user_namespaces) if fd >= 0]

    def user_namespaces(self) -> tuple[int, int]:
        """Return descriptors of the user namespace of commands, and of the builder's; or -1."""
        return self._user_namespaces

    def figures(self) -> Stats:
        """Return what the owner's launcher knows of the use."""
        return self._describe(stats=True).stats or Stats(*[None] * 10)

    def _describe(self, *, stats: bool = False) -> RemoteContainer:
        found = [one for one in _ask_all(self._remote.session, stats=stats) if one.id == self.id]
        if not found:
            raise ContainerStopped(f"the container {self.id} has ended. {_PS}")
        return found[0]

    def request_layer(self) -> tuple[Message, Descriptors]:
        """Ask the owner's launcher for the writable layer."""
        answer, fds = _ask_owner(self._remote, {"op": "layer", "id": self.id})
        return answer, Descriptors(fds)
