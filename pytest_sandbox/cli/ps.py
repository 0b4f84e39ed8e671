"""The entries of ``ps``: running containers, ended detached ones, and saved layers of tests."""

from __future__ import annotations

import argparse
import re
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

from pytest_sandbox.cli import filters, times
from pytest_sandbox.cli.format import Listing
from pytest_sandbox.errors import SandboxError
from pytest_sandbox.units import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_sandbox.cli.filters import Condition
    from pytest_sandbox.container.detached import Detached
    from pytest_sandbox.container.remote import RemoteContainer
    from pytest_sandbox.container.saved_layers import SavedLayer

__all__ = ["LISTING", "asks_for_ended", "condition", "entries", "row"]

_KEYS = (
    "id",
    "name",
    "status",
    "ancestor",
    "label",
    "exited",
    "before",
    "since",
    "network",
    "publish",
)
_STATUSES = ("running", "paused", "restarting", "exited", "kept")
#: The statuses of containers that `ps` lists without -a.
_RUNNING = {"running", "paused", "restarting"}

Entry = dict[str, Any]

#: The fields of a row, for ``--format``; ``Name`` is another word for ``Names``.
LISTING = Listing(
    {
        "ID": "CONTAINER ID",
        "Image": "IMAGE",
        "Command": "COMMAND",
        "CreatedAt": "CREATED AT",
        "RunningFor": "CREATED",
        "Status": "STATUS",
        "State": "STATE",
        "Ports": "PORTS",
        "Names": "NAME",
        "Name": "NAME",
        "Labels": "LABELS",
        "Mounts": "MOUNTS",
        "Networks": "NETWORKS",
        "Pid": "PID",
    },
    ("ID", "Image", "Command", "Status", "Names"),
)


def condition(text: str) -> Condition:
    """Return the key and the value of a ``--filter``."""
    key, value = filters.condition(text, _KEYS, {"status": _STATUSES})
    if key == "name":
        try:
            re.compile(value)
        except re.error as error:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not valid ({error}); accepted: name= with a regular expression, in "
                "which \\[ is a bracket"
            ) from None
    return key, value


def asks_for_ended(only: Sequence[Condition]) -> bool:
    """Return whether a condition is about ended containers, which needs no -a."""
    return any(
        key == "exited" or (key == "status" and value not in _RUNNING) for key, value in only
    )


def entries(*, every: bool, only: Sequence[Condition] = ()) -> list[Entry]:
    """Return what is listed, oldest first in each group; with ``every`` also ended containers.

    Of several conditions with one key, one must hold; of several keys, each, as with docker.
    """
    from pytest_sandbox.container.detached import list_detached
    from pytest_sandbox.container.remote import list_containers
    from pytest_sandbox.container.saved_layers import list_saved
    from pytest_sandbox.container.shared_network import list_networks

    known = {one.id: one for one in list_detached()}
    ended = [_saved_entry(one, known.get(one.id)) for one in list_saved()]
    networks = {one: net.name for net in list_networks() for one in net.containers()}
    running = [
        {**_entry(one, known.get(one.id)), "network": networks.get(one.id, "")}
        for one in list_containers()
    ]
    tests = _tests(only, [*ended, *running])
    found = [*(ended if every else []), *running]
    return [entry for entry in found if filters.matching(entry, only, tests)]


def _tests(
    only: Sequence[Condition], every: list[Entry]
) -> dict[str, Callable[[Entry, str], bool]]:
    """Return the test of each key. Raises :class:`SandboxError` for an unknown container."""
    times = {value: _created(value, every) for key, value in only if key in {"before", "since"}}
    return {
        "id": lambda entry, value: entry["id"].startswith(value),
        "name": lambda entry, value: _has_name(entry["name"], value),
        "status": lambda entry, value: entry["status"] == value,
        "ancestor": lambda entry, value: str(entry["image"]) == value,
        "label": lambda entry, value: filters.has_label(entry["labels"], value),
        "exited": lambda entry, value: (
            entry["status"] == "exited" and str(entry["exit_code"]) == value
        ),
        "before": lambda entry, value: entry["created"] < times[value],
        "since": lambda entry, value: entry["created"] > times[value],
        "network": lambda entry, value: _network(entry) == value,
        "publish": _publishes,
    }


def _has_name(name: str, pattern: str) -> bool:
    """Return whether a regular expression matches a part of the name, also with docker's slash
    before it; or is a part of it, such as the name of a parametrized test.
    """
    return pattern in name or any(re.search(pattern, one) for one in (name, f"/{name}"))


def _created(name: str, every: list[Entry]) -> float:
    from pytest_sandbox.container.remote import matching

    ids = matching(name, [one["id"] for one in every], [one["name"] for one in every])
    if len(ids) != 1:
        problem = f"is ambiguous: {', '.join(ids)}" if ids else "is no container"
        raise SandboxError(f"--filter: {name!r} {problem}. `pytest-sandbox ps -a` lists them.")
    return float(next(one["created"] for one in every if one["id"] == ids[0]))


def _publishes(entry: Entry, value: str) -> bool:
    wanted = value if "/" in value else f"{value}/tcp"
    return any(
        wanted in {key, f"{port}/{key.rpartition('/')[2]}"} for key, _host, port in entry["ports"]
    )


def _network(entry: Entry) -> str:
    return str(entry.get("network") or entry["settings"].get("network") or "none")


def row(entry: Entry) -> Entry:
    """Return the fields of an entry, for ``--format``."""
    labels = entry["labels"]
    return {
        "ID": entry["id"],
        "Image": str(entry["image"]),
        "Command": entry["command"],
        "CreatedAt": times.date(entry["created"]),
        "RunningFor": f"{duration(max(0.0, time.time() - entry['created']))} ago",
        "Status": _status(entry),
        "State": entry["status"],
        "Ports": ", ".join(_port(*one) for one in entry["ports"]),
        "Names": entry["name"],
        "Name": entry["name"],
        "Labels": ",".join(f"{key}={value}" for key, value in labels.items()),
        "Label": lambda key: labels.get(key, ""),
        "Mounts": ",".join(one.split(":")[0] for one in entry["settings"].get("volumes") or ()),
        "Networks": _network(entry),
        "Pid": entry["pid"] or 0,
    }


def _port(key: str, host: str, port: int) -> str:
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"{place}->{key}"


def _status(entry: Entry) -> str:
    age = duration(max(0.0, time.time() - (entry["finished"] or entry["created"])))
    code = entry["exit_code"]
    return {
        "running": f"Up {age}",
        "paused": f"Up {age} (Paused)",
        "restarting": f"Restarting ({code}) {age} ago",
        "exited": f"Exited ({code}) {age} ago",
    }.get(entry["status"], f"Kept {age} ago")


def _saved_entry(one: SavedLayer, detached: Detached | None) -> Entry:
    return {
        "id": one.id,
        "status": "kept",
        "name": one.label,
        "image": one.settings.get("image", "host"),
        "command": "",
        "created": one.time,
        "pid": None,
        "session": "",
        "settings": one.settings,
        **_facts(detached, "exited"),
    }


def _entry(one: RemoteContainer, detached: Detached | None) -> Entry:
    restarting = detached is not None and detached.facts.state == "restarting"
    status = "paused" if one.paused else "restarting" if restarting else "running"
    return {
        "id": one.id,
        "status": status,
        "name": one.label,
        "image": one.settings.image,
        "command": "" if detached else _command(one),
        "created": one.since,
        "pid": one.pid,
        "session": one.session,
        "settings": one.settings.raw(),
        **_facts(detached, status),
    }


def _facts(detached: Detached | None, status: str) -> Entry:
    """Return what only the supervisor knows; without one, empty values."""
    if detached is None:
        return {"finished": None, "exit_code": None, "labels": {}, "ports": [], "network": ""}
    facts = detached.facts
    is_over = status in {"exited", "restarting"}
    return {
        "status": status,
        "name": detached.name,
        "image": facts.image,
        "command": " ".join(facts.command),
        "created": facts.created,
        "finished": facts.finished if is_over else None,
        "exit_code": facts.exit_code if is_over else None,
        "labels": facts.labels,
        "network": facts.network,
        "ports": [list(one) for one in facts.ports],
    }


def _command(one: RemoteContainer) -> str:
    """Return the command line of the first process inside, or an empty string."""
    from pytest_sandbox.container.processes import list_processes
    from pytest_sandbox.container.remote import open_handle

    with suppress(SandboxError), closing(open_handle(one)) as handle:
        return next((line for _pid, line in list_processes(handle)), "")
    return ""
