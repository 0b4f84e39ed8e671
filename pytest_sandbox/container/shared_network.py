"""Networks of the command line, whose containers belong to several processes.

A network without a daemon needs a process that owns it: the holder, which ``network create`` starts
and ``network rm`` ends. It has a :class:`Network`, and connects the containers of other processes
of this user to it::

    HOME/networks/NAME.PID/    PID is the holder, which has a lock on the directory (flock(2))
        network.json           :class:`NetworkFacts`
        socket                 requests

==============  =======================================  ===================================
request         with                                     answer
==============  =======================================  ===================================
``join``        id, names + [pidfd of the init]          ``joined`` (names, address, number)
``leave``       id, unplug                               ``left``
``describe``    --                                       ``described`` (containers)
``remove``      --                                       ``removed``
==============  =======================================  ===================================

Any request may be answered by ``error`` (text). The holder notices the end of a container by the
pidfd. When the holder is killed, the kernel removes the network.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import select
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pytest_sandbox.client import session
from pytest_sandbox.container.detached import is_locked
from pytest_sandbox.container.network import Endpoint, Network
from pytest_sandbox.errors import SandboxError, SettingsError, UnsupportedError
from pytest_sandbox.linux import private_directory
from pytest_sandbox.linux.removal import remove_tree
from pytest_sandbox.paths import images
from pytest_sandbox.runtime import storage
from pytest_sandbox.runtime.protocol import Message, close_all
from pytest_sandbox.runtime.request_socket import RequestSocket, ask

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PREDEFINED", "NetworkFacts", "NetworkHolder", "SharedNetwork", "find", "list_networks"]

#: Docker's networks that always exist.
PREDEFINED: Final = ("bridge", "host", "none", "outside")
_FACTS, _SOCKET = "network.json", "socket"
_ENTRY = re.compile(r"(.+?)(\.\d+)+")
#: Seconds for the holder to answer: connecting a container takes milliseconds.
_TIMEOUT = 30.0


@dataclass(frozen=True)
class NetworkFacts:
    """What the holder tells of its network: ``hosts`` is the path of the file with its names."""

    id: str
    name: str
    subnet: str
    created: float
    hosts: str
    labels: dict[str, str] = field(default_factory=dict)


def _home() -> str:
    return os.path.join(images(), "networks")


class NetworkHolder:
    """The process that owns a network, until ``network rm`` or its end."""

    def __init__(self, name: str, subnet: str | None, labels: dict[str, str]) -> None:
        network = Network(name, subnet=subnet) if subnet else Network(name)
        if session.current().builder_fd >= 0:
            raise UnsupportedError(
                "a network of the command line without root",
                "The kernel lets an unprivileged user connect containers of one process only. Run "
                "as root, or use pytest_sandbox.Network in one process.",
            )
        self.network = network.start()
        storage.remove_unfinished(private_directory.make_private(_home()))
        self._directory, self._lock = storage.make_unfinished(os.path.join(_home(), name))
        hosts = network.hosts()[0]
        identity = secrets.token_hex(32)
        self.facts = NetworkFacts(identity, name, network.subnet, time.time(), hosts, labels)
        with open(os.path.join(self._directory, _FACTS), "x", encoding="utf-8") as file:
            json.dump(asdict(self.facts), file)
        self._requests = RequestSocket(
            os.path.join(self._directory, _SOCKET), self._answer, timeout=_TIMEOUT
        )
        self._members: dict[str, Endpoint] = {}
        self._inits: dict[int, str] = {}
        self._is_removed = False

    def serve(self) -> None:
        """Answer requests until the network is removed, or its launcher has ended."""
        launcher = session.current()
        try:
            while not self._is_removed and launcher.is_alive:
                self._wait(launcher.pidfd)
        finally:
            self._close()

    def _wait(self, launcher: int) -> None:
        poll = select.poll()
        for fd in (self._requests.fileno(), launcher, *self._inits):
            poll.register(fd, select.POLLIN)
        ready = {fd for fd, _event in poll.poll()}
        for fd in ready & self._inits.keys():
            self._forget(self._inits[fd])
        if self._requests.fileno() in ready:
            self._requests.attend()

    def _answer(self, message: Message, fds: list[int]) -> Message:
        op = message["op"]
        if op == "join":
            return self._join(message["id"], message["names"], fds)
        if op == "leave":
            self._leave(message["id"], unplug=message["unplug"])
            return {"op": "left"}
        if op == "remove":
            self.network.close()  # raises an error while containers are on it
            self._is_removed = True
            return {"op": "removed"}
        members = {
            identity: {"name": one.names[0], "address": one.address}
            for identity, one in self._members.items()
        }
        return {"op": "described", "containers": members}

    def _join(self, identity: str, names: Sequence[str], fds: list[int]) -> Message:
        if identity in self._members:
            self._forget(identity)
        pidfd = os.dup(fds[0])
        try:
            endpoint = self.network.attach(identity, tuple(names), pidfd)
        except BaseException:
            os.close(pidfd)
            raise
        self._members[identity], self._inits[pidfd] = endpoint, identity
        place = {"address": endpoint.address, "number": endpoint.number}
        return {"op": "joined", "names": endpoint.names, **place}

    def _leave(self, identity: str, *, unplug: bool) -> None:
        endpoint = self._members.get(identity)
        if endpoint is None:
            raise SandboxError(
                f"the container {identity} is not connected to the network {self.network.name}"
            )
        if unplug:
            self.network.unplug(endpoint)
        self._forget(identity)

    def _forget(self, identity: str) -> None:
        endpoint = self._members.pop(identity)
        for fd in [fd for fd, one in self._inits.items() if one == identity]:
            del self._inits[fd]
            self.network.detach(endpoint)
            os.close(fd)

    def _close(self) -> None:
        self._requests.close()
        close_all(list(self._inits))
        with suppress(OSError):
            remove_tree(self._directory)
        os.close(self._lock)
        launcher = session.running()
        if launcher is not None:
            launcher.close()


class SharedNetwork:
    """A network of another process, for the setting ``network`` of one container, which the others
    on it find by ``name`` (default: its host name).
    """

    def __init__(self, facts: NetworkFacts, directory: str, name: str = "") -> None:
        self.facts = facts
        self._directory = directory
        self._name = name

    @property
    def name(self) -> str:
        """The name of the network."""
        return self.facts.name

    @property
    def subnet(self) -> str:
        """The subnet of the containers' addresses."""
        return self.facts.subnet

    def named(self, name: str) -> SharedNetwork:
        """Return the network for a container with this name."""
        return SharedNetwork(self.facts, self._directory, name)

    def containers(self) -> dict[str, dict[str, str]]:
        """Return name and address of each container, by its id; nothing if the holder has ended."""
        try:
            found: dict[str, dict[str, str]] = self._ask({"op": "describe"})["containers"]
        except SandboxError:
            return {}
        return found

    def remove(self) -> None:
        """End the network. Raises :class:`SandboxError` while containers are on it."""
        self._ask({"op": "remove"})

    def leave(self, identity: str) -> None:
        """Disconnect a container, which keeps running. Raises :class:`SandboxError`."""
        self._ask({"op": "leave", "id": identity, "unplug": True})

    # -- as of a Network, for containers

    def hosts(self) -> tuple[str, str, bool]:
        """Return the volume that mounts the hosts file at /etc/hosts."""
        return self.facts.hosts, "/etc/hosts", True

    def attach(self, identity: str, names: tuple[str, ...], pidfd: int) -> Endpoint:
        """Connect a container; ``pidfd`` refers to its init. Raises :class:`SandboxError`."""
        wanted = (self._name, *names) if self._name else names
        answer = self._ask({"op": "join", "id": identity, "names": wanted}, [pidfd])
        network: Any = self
        return Endpoint(network, answer["number"], answer["address"], tuple(answer["names"]))

    def plug(self, endpoint: Endpoint, pidfd: int) -> None:
        """Connect a later init of a container, which may get another address."""
        self.attach(endpoint.names[-1], endpoint.names[:-1], pidfd)

    def detach(self, endpoint: Endpoint) -> None:
        """Free the address and the name of a container that has ended."""
        with suppress(SandboxError):  # the holder has noticed it, or has ended
            self._ask({"op": "leave", "id": endpoint.names[-1], "unplug": False})

    def _ask(self, message: Message, fds: Sequence[int] = ()) -> Message:
        path = os.path.join(self._directory, _SOCKET)
        try:
            answer, received = ask(path, message, fds, timeout=_TIMEOUT)
        except (OSError, EOFError) as error:
            raise SandboxError(
                f"the network {self.name} has ended. `pytest-sandbox network ls` lists them."
            ) from error
        close_all(received)
        if answer["op"] == "error":
            raise SandboxError(answer["text"])
        return answer


def list_networks() -> list[SharedNetwork]:
    """Return the networks that were created, oldest first."""
    # In a directory of another user, that user's process could get pidfds of our containers.
    places = [
        os.path.join(home, name)
        for home in private_directory.private_ones([_home()])
        for name in os.listdir(home)
    ]
    found = (one for one in map(_read, places) if one is not None)
    return sorted(found, key=lambda one: one.facts.created)


def _read(directory: str) -> SharedNetwork | None:
    if not _ENTRY.fullmatch(os.path.basename(directory)) or not is_locked(directory):
        return None
    try:
        with open(os.path.join(directory, _FACTS), encoding="utf-8") as file:
            return SharedNetwork(NetworkFacts(**json.load(file)), directory)
    except (OSError, ValueError, TypeError):
        return None


def find(name: str) -> SharedNetwork | None:
    """Return the network of a name, an id, or the beginning of an id; None if there is none.

    Raises :class:`SettingsError` for several.
    """
    known = list_networks()
    exact = [one for one in known if name in {one.name, one.facts.id}]
    found = exact or [one for one in known if name and one.facts.id.startswith(name)]
    if len(found) > 1:
        raise SettingsError("network", name, "more of the id: several networks have this beginning")
    return found[0] if found else None
