"""Detached containers (``run -d``): what their supervisors write down, for other processes.

::

    HOME/kept/ID.PID/        of a running container; PID is its supervisor, which holds a lock on
                             the directory (flock(2))
    HOME/kept/ID/            of a container that has ended, with its layer (saved_layers)
        container.json       :class:`Facts`
        name                 the name, which `rename` changes
        log.0, log.1, ...    the output (detached_log)
        status               the exit status, empty until the container has ended

A supervisor that was killed leaves a directory that nobody has locked. The cleanup of the next
session removes it, as every unfinished saved layer.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

from pytest_sandbox.container import remote, saved_layers
from pytest_sandbox.errors import ContainerStopped, SandboxError
from pytest_sandbox.linux import process

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.container.remote import RemoteContainer

__all__ = [
    "KILL",
    "STOP",
    "Detached",
    "Ending",
    "Facts",
    "find",
    "find_detached",
    "is_locked",
    "list_detached",
    "list_running",
    "write_facts",
    "write_name",
    "write_status",
]

#: The signals of a supervisor: send the stop signal to the command; kill it. Neither restarts it.
STOP, KILL = signal.SIGTERM, signal.SIGUSR1
_FACTS, _NAME, _STATUS = "container.json", "name", "status"
_RUNNING = re.compile(r"[^.]+\.(\d+)(\.\d+)?")
#: Seconds between two attempts to lock: flock(2) has no timeout.
_PAUSE = 0.01


@dataclass(kw_only=True)
class Facts:
    """What a supervisor tells of its container.

    Times are in seconds since the epoch. ``state`` is "running", "restarting" or "exited"; ``pid``
    is the PID of the command outside, 0 while it does not run. ``restart`` is docker's policy.
    ``image_id`` is the id of a stored image, else empty; ``network`` the name of a network.
    ``entrypoint`` is the beginning of ``command``.
    ``ports`` are published ports: the key inside ("80/tcp"), the host's address and its port.
    ``log_options`` are those of ``--log-opt``.
    """

    id: str
    image: str
    command: list[str]
    created: float
    image_id: str = ""
    entrypoint: list[str] = field(default_factory=list)
    network: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    ports: list[tuple[str, str, int]] = field(default_factory=list)
    log_options: dict[str, str] = field(default_factory=dict)
    tty: bool = False
    stdin: bool = False
    restart: str = "no"
    remove: bool = False
    stop_signal: int = signal.SIGTERM
    state: str = "running"
    pid: int = 0
    started: float = 0.0
    finished: float = 0.0
    exit_code: int = 0
    oom_killed: bool = False
    error: str = ""
    restarts: int = 0


@dataclass(frozen=True)
class Detached:
    """A detached container, running or ended. ``supervisor`` is the PID of its supervisor, 0 if it
    has ended.
    """

    facts: Facts
    name: str
    directory: str
    supervisor: int

    @property
    def id(self) -> str:
        """The id of the container."""
        return self.facts.id

    @property
    def is_running(self) -> bool:
        """Whether it had a supervisor when it was listed."""
        return self.supervisor > 0

    def signal_supervisor(self, number: int) -> None:
        """Send :data:`STOP` or :data:`KILL` to the supervisor; nothing if it has ended."""
        with suppress(OSError):
            pidfd = os.pidfd_open(self.supervisor)
            try:
                # It holds the lock after the PID was opened: so the PID was the supervisor's.
                if is_locked(self.directory):
                    process.kill(pidfd, number)
            finally:
                os.close(pidfd)

    def signal_command(self, number: int) -> None:
        """Send a signal to the command. Raises :class:`ContainerStopped` if it does not run."""
        init = next((one.pid for one in remote.list_containers() if one.id == self.id), 0)
        with suppress(OSError):
            pidfd = os.pidfd_open(self.facts.pid)
            try:
                if init and process.is_in_namespace_of(self.facts.pid, init):
                    process.kill(pidfd, number)
                    return
            finally:
                os.close(pidfd)
        raise ContainerStopped(f"the container {self.id} is not running.")

    def opened(self) -> Ending:
        """Return an object to wait for the end with, also if the container is removed then.

        Raises FileNotFoundError if it has been removed.
        """
        return Ending(self.directory)


class Ending:
    """The end of a detached container: ``with detached.opened() as ending``."""

    def __init__(self, directory: str) -> None:
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._status = os.open(_STATUS, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
        except BaseException:
            os.close(self._directory)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        os.close(self._status)
        os.close(self._directory)

    def has_come(self, timeout: float = 0) -> bool:
        """Wait up to ``timeout`` seconds for the end of the supervisor; return whether it has
        ended.
        """
        import fcntl

        deadline = time.monotonic() + timeout
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(self._directory, fcntl.LOCK_SH | fcntl.LOCK_NB)
                fcntl.flock(self._directory, fcntl.LOCK_UN)
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(_PAUSE)

    def wait(self) -> int | None:
        """Wait for the end; return the exit status, None if the supervisor was killed."""
        import fcntl

        fcntl.flock(self._directory, fcntl.LOCK_SH)
        text = os.pread(self._status, 16, 0)
        return int(text) if text else None


def is_locked(directory: str) -> bool:
    """Return whether the supervisor runs. The lock is shared, for others that look meanwhile."""
    import fcntl

    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


# -- written by the supervisor


def write_facts(directory: str, facts: Facts) -> None:
    """Write the facts, which other processes may be reading."""
    _replace(directory, _FACTS, json.dumps(asdict(facts), default=str))


def write_name(directory: str, name: str) -> None:
    """Write the name of the container."""
    _replace(directory, _NAME, name)


def write_status(directory: str, status: str) -> None:
    """Write the exit status, to the file that waiting processes have opened."""
    fd = os.open(os.path.join(directory, _STATUS), os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, status.encode())
    finally:
        os.close(fd)


def _replace(directory: str, name: str, text: str) -> None:
    path = os.path.join(directory, name)
    written = f"{path}.{os.getpid()}"
    with open(written, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(written, path)


# -- read by others


def list_detached() -> list[Detached]:
    """Return the detached containers of this user, oldest first; without those whose supervisor was
    killed.
    """
    home = saved_layers.home()
    found = [one for one in (_read(home, name) for name in saved_layers.names()) if one is not None]
    ended = {one.id for one in found if not one.is_running}
    # One that has just ended may be listed under both of its names.
    alone = [one for one in found if not one.is_running or one.id not in ended]
    return sorted(alone, key=lambda one: (one.facts.created, one.id))


def _read(home: str, entry: str) -> Detached | None:
    match = _RUNNING.fullmatch(entry)
    directory = os.path.join(home, entry)
    if (match is None and "." in entry) or (match and not is_locked(directory)):
        return None
    try:
        with open(os.path.join(directory, _FACTS), encoding="utf-8") as file:
            raw = json.load(file)
        with open(os.path.join(directory, _NAME), encoding="utf-8") as file:
            name = file.read()
        known = {one.name for one in fields(Facts)}
        facts = Facts(**{key: value for key, value in raw.items() if key in known})
    except (OSError, ValueError, TypeError):
        return None
    return Detached(facts, name, directory, int(match[1]) if match else 0)


def list_running(*, stats: bool = False) -> list[RemoteContainer]:
    """Return what :func:`remote.list_containers` does, with the names that `rename` has given."""
    from dataclasses import replace

    names = {one.id: one.name for one in list_detached() if one.is_running}
    return [
        replace(one, label=names.get(one.id, one.label))
        for one in remote.list_containers(stats=stats)
    ]


def find(name: str, among: Sequence[Detached]) -> Detached | None:
    """Return the detached container whose id or name is ``name``, or whose id starts with it; None
    if there is none. Raises :class:`SandboxError` for several.
    """
    ids = remote.matching(name, [one.id for one in among], [one.name for one in among])
    if len(ids) > 1:
        raise SandboxError(
            f"the ids of {len(ids)} containers start with {name!r}: {', '.join(ids)}. Write more "
            "of the id."
        )
    return next((one for one in among if one.id in ids), None)


def find_detached(name: str) -> Detached:
    """Return the detached container of this name or id. Raises :class:`SandboxError`."""
    found = find(name, list_detached())
    if found is not None:
        return found
    running = list_running()
    if remote.matching(name, [one.id for one in running], [one.label for one in running]):
        raise SandboxError(
            f"the container {name!r} was not started with `run -d`: the process that started it "
            "ends it, and has its output."
        )
    raise SandboxError(f"No such container: {name}. `pytest-sandbox ps -a` lists them.")
