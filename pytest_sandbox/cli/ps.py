"""The entries of ``ps``: running containers, ended detached ones, and saved layers of tests."""

from __future__ import annotations

import argparse
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.units import duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.container.detached import Detached
    from pytest_sandbox.container.remote import RemoteContainer
    from pytest_sandbox.container.saved_layers import SavedLayer

__all__ = ["asks_for_ended", "condition", "entries", "row"]

_KEYS = ("id", "name", "status", "ancestor", "label")
_STATUSES = ("running", "paused", "restarting", "exited", "kept")
#: The statuses of containers that `ps` lists without -a.
_RUNNING = {"running", "paused", "restarting"}

Condition = tuple[str, str]


def condition(text: str) -> Condition:
    """Return the key and the value of a ``--filter``."""
    key, equals, value = text.partition("=")
    if not equals or key not in _KEYS or (key == "status" and value not in _STATUSES):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not valid; accepted: KEY=VALUE with a KEY among {', '.join(_KEYS)}, and "
            f"for status a VALUE among {', '.join(_STATUSES)}"
        )
    return key, value


def asks_for_ended(only: Sequence[Condition]) -> bool:
    """Return whether a condition is a status of ended containers, which needs no -a."""
    return any(key == "status" and value not in _RUNNING for key, value in only)


def entries(*, every: bool, only: Sequence[Condition] = ()) -> list[dict[str, Any]]:
    """Return what is listed, oldest first in each group; with ``every`` also ended containers.

    Of several conditions with one key, one must hold; of several keys, each, as with docker.
    """
    from pytest_sandbox.container.detached import list_detached
    from pytest_sandbox.container.remote import list_containers
    from pytest_sandbox.container.saved_layers import list_saved

    known = {one.id: one for one in list_detached()}
    saved = list_saved() if every else []
    found = [
        *(_saved_entry(one, known.get(one.id)) for one in saved),
        *(_entry(one, known.get(one.id)) for one in list_containers()),
    ]
    return [entry for entry in found if _matches(entry, only)]


def _matches(entry: dict[str, Any], only: Sequence[Condition]) -> bool:
    return all(
        any(_holds(entry, key, value) for other, value in only if other == key)
        for key in {key for key, _value in only}
    )


def _holds(entry: dict[str, Any], key: str, value: str) -> bool:
    if key == "id":
        return bool(entry["id"].startswith(value))
    if key == "name":
        return value in entry["name"]
    if key == "label":
        name, equals, text = value.partition("=")
        labels = entry["labels"]
        return name in labels and (not equals or labels[name] == text)
    return bool(str(entry["image" if key == "ancestor" else key]) == value)


def row(entry: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of the table."""
    return (entry["id"], str(entry["image"]), entry["command"], _status(entry), entry["name"])


def _status(entry: dict[str, Any]) -> str:
    age = duration(max(0.0, time.time() - (entry["finished"] or entry["created"])))
    code = entry["exit_code"]
    return {
        "running": f"Up {age}",
        "paused": f"Up {age} (Paused)",
        "restarting": f"Restarting ({code}) {age} ago",
        "exited": f"Exited ({code}) {age} ago",
    }.get(entry["status"], f"Kept {age} ago")


def _saved_entry(one: SavedLayer, detached: Detached | None) -> dict[str, Any]:
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


def _entry(one: RemoteContainer, detached: Detached | None) -> dict[str, Any]:
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


def _facts(detached: Detached | None, status: str) -> dict[str, Any]:
    """Return what only the supervisor knows; without one, empty values."""
    if detached is None:
        return {"finished": None, "exit_code": None, "labels": {}, "ports": []}
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
        "ports": [list(one) for one in facts.ports],
    }


def _command(one: RemoteContainer) -> str:
    """Return the command line of the first process inside, or an empty string."""
    from pytest_sandbox.container.processes import list_processes
    from pytest_sandbox.container.remote import open_handle

    with suppress(SandboxError), closing(open_handle(one)) as handle:
        return next((line for _pid, line in list_processes(handle)), "")
    return ""
