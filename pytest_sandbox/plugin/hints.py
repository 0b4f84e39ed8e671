"""Hints for the surprises of isolation: a failure that a test has inside and would not have
outside, and what to do about it.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.linux import sockets
from pytest_sandbox.plugin.crash_report import mib
from pytest_sandbox.plugin.display import escaped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

    from pytest_sandbox.container.container import Container
    from pytest_sandbox.outcome import Stats

__all__ = ["Symptom", "said", "symptoms"]

_DEEPEST = 20
#: What only containers without root meet, and what helps.
_OF_USERS = {errno.EXDEV: "moved", errno.EOVERFLOW: "foreign"}
_HELP_USERS = {
    "moved": "Without root a container cannot rename a directory that the host has (the kernel's "
    "overlay of a user keeps no note of it): copy it and "
    "remove the old one, as mv and shutil.move do, or run pytest as root.",
    "foreign": "It belongs to somebody of the host's who has no number in a user's container, so "
    "it cannot be copied into the writable layer to be "
    "changed: work on a copy, give it to the container by volumes=, or run pytest as root.",
}
_UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.ENETDOWN}


class Symptom(NamedTuple):
    """What an exception shows: its ``kind``, and the ``path`` that it names."""

    kind: str
    path: str = ""


def symptoms(error: BaseException | None) -> list[Symptom]:
    """Return what an exception, or one that led to it, shows of the surprises that isolation
    brings.
    """
    found = [symptom for one in _chain(error, 0) if (symptom := _symptom(one))]
    return list(dict.fromkeys(found))


def _chain(error: BaseException | None, depth: int) -> Iterator[BaseException]:
    if error is None or depth > _DEEPEST:
        return
    yield error
    for one in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
        if isinstance(one, BaseException):
            yield from _chain(one, depth + 1)


def _symptom(error: BaseException) -> Symptom | None:
    if isinstance(error, socket.gaierror):
        return Symptom("dns")
    if isinstance(error, ConnectionRefusedError):
        return Symptom("refused")
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return Symptom("pids")
    if not isinstance(error, OSError):
        return None
    path = error.filename if isinstance(error.filename, str) else ""
    if error.errno in _UNREACHABLE:
        return Symptom("unreachable")
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return Symptom("full", path)
    if error.errno in _OF_USERS:
        return Symptom(_OF_USERS[error.errno], path)
    if error.errno == errno.ENXIO and path:  # nobody has the FIFO open for reading (fifo(7))
        return Symptom("unread", os.path.abspath(path))
    if error.errno == errno.EAGAIN and not path:
        return Symptom("pids")
    return (
        Symptom("missing", os.path.abspath(path)) if error.errno == errno.ENOENT and path else None
    )


#: Paths that tests inside have made, and which test it was: the next one does not see them.
_made: dict[str, str] = {}
_MOST_MADE = 100_000
#: What is remembered of one test: passing tests pay for it too.
_MOST_OF_ONE = 1000
_MOST_SECONDS = 0.05


def remember(item: pytest.Item, container: Container) -> None:
    """Remember what a test has left in its container, as far as that takes next to no time."""
    from pytest_sandbox.container.diff import changes_of

    if len(_made) < _MOST_MADE:
        with suppress(SandboxError, OSError):
            found = changes_of(container, most=_MOST_OF_ONE, seconds=_MOST_SECONDS, as_user=True)
            _made.update((change.path, item.nodeid) for change in found if change.kind == "added")


def said(found: list[Symptom], item: pytest.Item, container: Container, stats: Stats) -> str:
    """Return the hints for the symptoms, a line each; empty where isolation explains nothing."""
    lines = [
        line for symptom in dict.fromkeys(found) if (line := _line(symptom, item, container, stats))
    ]
    if stats.oom_kills:
        lines.append(_killed(stats))
    return "\n".join(dict.fromkeys(lines))


def _killed(stats: Stats) -> str:
    """Say that processes inside were killed for memory, which the test that started them sees as
    SIGKILL alone.
    """
    count = "a process" if stats.oom_kills == 1 else f"{stats.oom_kills} processes"
    if stats.memory_limit is None:
        return (
            f"Out of memory: the kernel killed {count} inside, for the machine's memory was full."
        )
    return (
        f"Out of memory: the kernel killed {count} inside. The container may use "
        f"{mib(stats.memory_limit)} (memory=), "
        f"and its peak was {mib(stats.memory_peak)}."
    )


def _line(symptom: Symptom, item: pytest.Item, container: Container, stats: Stats) -> str:
    settings = container.settings
    if symptom.kind == "refused":
        return "\n".join(
            [*_refused(alone=settings.network != "host"), *_of_the_host(container, stat.S_ISSOCK)]
        )
    if symptom.kind == "unread":
        return "\n".join(_of_the_host(container, stat.S_ISFIFO, symptom.path))
    if symptom.kind in {"dns", "unreachable"} and settings.network != "host":
        start = "No name can be looked up inside: the" if symptom.kind == "dns" else "The"
        return f'{start} {_reach(settings.network)}. network="host" gives it the host\'s.'
    if symptom.kind in _HELP_USERS and container.user_namespaces()[1] >= 0:
        return _HELP_USERS[symptom.kind]
    if symptom.kind == "missing":
        return "\n".join(
            [*_missing(symptom.path, item), *_of_the_host(container, stat.S_ISDIR, symptom.path)]
        )
    if symptom.kind == "full" and settings.disk is not None:
        return f"Disk full: the container's writable layer may hold {mib(settings.disk)} (disk=)."
    if symptom.kind == "pids" and settings.pids_limit is not None:
        return (
            f"No more processes: the container may have {settings.pids_limit} processes and "
            f"threads (pids_limit=), and had {stats.pids_peak}."
        )
    return ""


def _reach(network: object) -> str:
    """Return what a container on this network reaches, as an end of a sentence."""
    if isinstance(network, str):
        return "container has no network but its own loopback"
    found = ", ".join(
        f"{name} ({address})" for name, address in getattr(network, "addresses", {}).items()
    )
    return f"container's network leads to those who are on it alone: {found}"


def _of_the_host(container: Container, is_kind: Callable[[int], bool], path: str = "") -> list[str]:
    """Return a line for each mount of the host of this kind, above ``path`` where there is one,
    that the container does not reach.
    """
    if not container.spec.is_on_host:
        return []
    refused: list[str] = []
    with suppress(SandboxError, OSError):
        refused = [
            one for one in container.launcher.unreachable_paths() if is_kind(os.stat(one).st_mode)
        ]
    return [
        f'The host\'s {one} is a mount that is not reached from inside. volumes=["{one}:{one}"] '
        "passes it in."
        for one in refused
        if not path or f"{path}/".startswith(f"{one}/")
    ]


def _refused(*, alone: bool) -> list[str]:
    lines = []
    listening = sockets.listening(os.getpid())
    ports = sorted({f"{one.address}:{one.port}" for one in listening if one.port})
    if ports and alone:
        lines.append(
            f"Refused inside, but the pytest process listens outside, on {', '.join(ports)}: a "
            "server that a fixture of a higher scope runs is "
            'outside, and the container has a loopback of its own. network="host" reaches it; so '
            "does a function-scoped fixture, which runs inside."
        )
    paths = sorted({one.path for one in listening if one.path})
    if paths:
        lines.append(
            f"The pytest process listens outside on the Unix socket {', '.join(paths)}: a socket "
            "cannot be connected to through the container's "
            f'layer. volumes=["{paths[0]}:{paths[0]}"] passes it in.'
        )
    return lines


def _missing(path: str, item: pytest.Item) -> list[str]:
    maker = _made.get(path)
    if maker is None or maker == item.nodeid:
        return []
    line = (
        f"{escaped(path)} was made by {maker}, inside its own container, and went with it. "
        'A fixture of a higher scope makes it once for all, and volumes=["DIRECTORY:DIRECTORY"] '
        "keeps a directory."
    )
    return [line]
