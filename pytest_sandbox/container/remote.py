"""Containers of other processes of this user: which there are, and a way into one."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

from pytest_sandbox.client import cleanup, session
from pytest_sandbox.client.requests import Descriptors
from pytest_sandbox.container.container import Container, without_init
from pytest_sandbox.container.rootfs import Rootfs
from pytest_sandbox.errors import ContainerStopped, SandboxError
from pytest_sandbox.launcher import control_socket
from pytest_sandbox.linux import local_socket
from pytest_sandbox.linux.cgroup import Cgroup
from pytest_sandbox.outcome import Stats
from pytest_sandbox.runtime.protocol import Channel, Message, close_all
from pytest_sandbox.runtime.spec import Spec
from pytest_sandbox.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Entered", "Living", "enter", "find", "living", "matching"]

_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Living:
    """A container that lives in some process of this user.

    ``pid`` is its init's number, ``since`` the time when it was handed over (seconds since the
    epoch), ``label`` what its owner calls it.
    """

    session: str
    id: str
    pid: int
    since: float
    label: str
    settings: Settings
    stats: Stats | None = None
    paused: bool = False


def living(*, stats: bool = False) -> list[Living]:
    """Return all containers of this user that somebody has, the oldest first; with their figures
    where ``stats``.
    """
    found = [one for session in _sessions() for one in _ask_all(session, stats=stats)]
    return sorted(found, key=lambda one: (one.since, one.id))


def _sessions() -> Iterator[str]:
    """Yield the sessions that have a control socket; that of a dead launcher is found out when it
    is connected to.
    """
    yield from (name for name in sorted(cleanup.sessions()) if os.path.exists(_socket_of(name)))


def _socket_of(session: str) -> str:
    return os.path.join(cleanup.session_directory(session), control_socket.NAME)


def _ask_all(session: str, *, stats: bool) -> list[Living]:
    try:
        answer, fds = _ask(session, {"op": "list", "stats": stats})
        close_all(fds)
    except (OSError, EOFError):  # it has ended, and is swept by whoever comes next
        return []
    return [_read(session, card) for card in answer["containers"]]


def _figures(told: Message) -> Stats:
    """Read figures; the owner may run another version of this library, and know others."""
    return Stats(**{one.name: told.get(one.name) for one in fields(Stats)})


def _read(session: str, card: Message) -> Living:
    about = card["about"] or {"label": "", "settings": {}}
    settings = Settings(**about["settings"])
    used = None if card["stats"] is None else without_init(_figures(card["stats"]), settings)
    return Living(
        session,
        card["id"],
        card["pid"],
        card["since"],
        about["label"],
        settings,
        used,
        bool(card.get("paused")),
    )


def _ask(session: str, message: Message) -> tuple[Message, list[int]]:
    """Ask a session's launcher one thing.

    Raises :class:`OSError` or :class:`EOFError` where it is gone or does not answer.
    """
    channel = Channel(local_socket.connect(_socket_of(session), _PATIENCE))
    try:
        channel.send(message)
        return channel.receive()
    finally:
        channel.close()


def matching(name: str, ids: list[str], labels: list[str]) -> list[str]:
    """Return the ids that ``name`` may mean: what it is the id or the label of, else what it
    begins; an empty one means none.
    """
    exact = [id_ for id_, label in zip(ids, labels, strict=True) if name and name in (id_, label)]
    return exact or [id_ for id_ in ids if name and id_.startswith(name)]


def find(name: str, among: list[Living] | None = None) -> Living:
    """Return the one whose id or label ``name`` is, or whose id begins with it.

    Raises :class:`SandboxError` for none and for several.
    """
    known = living() if among is None else among
    ids = matching(name, [one.id for one in known], [one.label for one in known])
    if len(ids) == 1:
        return next(one for one in known if one.id == ids[0])
    if ids:
        raise SandboxError(
            f"{name!r} is the beginning of {len(ids)} containers: {', '.join(ids)}. Write more of "
            "it."
        )
    raise SandboxError(
        f"there is no living container {name!r}. `pytest-sandbox ps` lists those that there are."
    )


def enter(one: Living) -> Entered:
    """Return a handle on it, with which to run commands inside, to look at its figures and its
    files. Raises :class:`ContainerStopped`.
    """
    answer, fds = _ask_owner(one, {"op": "enter", "id": one.id})
    return Entered(one, answer, *fds)


def _ask_owner(one: Living, message: Message) -> tuple[Message, list[int]]:
    try:
        answer, fds = _ask(one.session, message)
    except (OSError, EOFError) as error:
        raise ContainerStopped(
            f"the container {one.id} has ended, and its session with it. `pytest-sandbox ps` "
            "lists the living."
        ) from error
    if answer["op"] == "error":
        close_all(fds)
        raise ContainerStopped(
            f"the container {one.id} {answer['reason']}. `pytest-sandbox ps` lists the living."
        )
    return answer, fds


def _in_their_places(there: list[bool], fds: tuple[int, ...]) -> tuple[int, int]:
    """Return the two descriptors, -1 for one that there is not."""
    left = iter(fds)
    own, builder = (next(left) if one else -1 for one in there)
    return own, builder


class _JoinedCgroup(Cgroup):
    """What its own launcher has said of a container's cgroups: how to join them."""

    def __init__(self, id: str, joins: list[str]) -> None:  # noqa: A002 - the container's word
        super().__init__(id)
        self._joins = tuple(joins)

    def join_paths(self) -> tuple[str, ...]:
        return self._joins


class _Told(Rootfs):
    """What an owner has said about the rootfs of its container: commands of others start as its own
    do.
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


class Entered(Container):
    """A container that another process owns, seen from this one: closing lets go of it, and leaves
    it running.
    """

    def __init__(self, one: Living, answer: Message, pidfd: int, *user_namespaces: int) -> None:
        super().__init__(one.settings)
        self.id, self.label, self.pidfd, self._pid = one.id, one.label, pidfd, answer["pid"]
        self.spec, self.rootfs = (
            Spec.from_json(answer["spec"]),
            _Told(one.settings, answer["about"]),
        )
        self.cgroup = _JoinedCgroup(one.id, answer["joins"])
        self._state = "running"
        self._one = one
        self._user_namespaces = _in_their_places(answer["user_namespaces"], user_namespaces)
        self._owner, self._home = os.getpid(), session.home()
        self._letting_go = threading.Lock()

    def close(self) -> None:
        """Let go of it."""
        with self._letting_go:
            if self._state != "running":
                return
            self._state = "stopped"
        close_all(self.descriptors())

    def descriptors(self) -> list[int]:
        """Return what this process has open of the container."""
        return [fd for fd in (self.pidfd, *self._user_namespaces) if fd >= 0]

    def user_namespaces(self) -> tuple[int, int]:
        """Return the payloads' user namespace, and the one that the container was built in; -1
        where there is none.
        """
        return self._user_namespaces

    def figures(self) -> Stats:
        """Return what it uses, all that its owner knows of it."""
        return self._told(stats=True).stats or Stats(*[None] * 10)

    def _told(self, *, stats: bool = False) -> Living:
        found = [one for one in _ask_all(self._one.session, stats=stats) if one.id == self.id]
        if not found:
            raise ContainerStopped(
                f"the container {self.id} has ended. `pytest-sandbox ps` lists the living."
            )
        return found[0]

    def _awake(self) -> Self:
        self._running()
        if self._told().paused:
            raise ContainerStopped(
                f"the container {self.id} is paused. Its owner can unpause() it."
            )
        return self

    def _layer(self) -> tuple[Message, Descriptors]:
        answer, fds = _ask_owner(self._one, {"op": "layer", "id": self.id})
        return answer, Descriptors(fds)
