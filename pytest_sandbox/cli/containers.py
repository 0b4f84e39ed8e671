"""``ps``, ``exec``, ``shell``, ``rm``, ``stats`` and ``diff``: running containers of this user, and
saved layers of ended ones.
"""

from __future__ import annotations

import sys
import time
from contextlib import closing, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pytest_sandbox.cli import flags, output
from pytest_sandbox.cli.verb import Verb
from pytest_sandbox.errors import SandboxError
from pytest_sandbox.units import duration

if TYPE_CHECKING:
    import argparse

    from pytest_sandbox.container.container import Container
    from pytest_sandbox.container.remote import RemoteContainer
    from pytest_sandbox.container.saved_layers import SavedLayer

__all__ = ["VERBS"]


def _format_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        choices=["table", "json"],
        default="table",
        help="json: one list, for programs (default: table)",
    )


def _id_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "id", metavar="CONTAINER", help="its id, the beginning of its id, or its name"
    )


# -- ps


def _ps_arguments(parser: argparse.ArgumentParser) -> None:
    _format_argument(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print ids only")
    parser.add_argument(
        "-a",
        "--all",
        action="store_true",
        help="also list ended containers whose layers `pytest --sandbox-keep` has kept",
    )


def _ps(found: argparse.Namespace) -> int:
    from pytest_sandbox.container.remote import list_containers
    from pytest_sandbox.container.saved_layers import list_saved

    saved = list_saved() if found.all else []
    cards = [*map(_kept_card, saved), *map(_card, list_containers())]
    if found.quiet:
        print("".join(f"{card['id']}\n" for card in cards), end="")
    elif found.format == "json":
        output.print_json(cards)
    else:
        output.print_table(
            ("CONTAINER ID", "IMAGE", "COMMAND", "STATUS", "NAME"),
            [_ps_row(card) for card in cards],
        )
    return 0


def _ps_row(card: dict[str, Any]) -> tuple[str, ...]:
    age = duration(max(0.0, time.time() - card["created"]))
    status = {"running": f"Up {age}", "paused": f"Up {age} (Paused)"}.get(
        card["status"], f"Kept {age} ago"
    )
    return (card["id"], str(card["image"]), card["command"], status, card["name"])


def _kept_card(one: SavedLayer) -> dict[str, Any]:
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
    }


def _card(one: RemoteContainer) -> dict[str, Any]:
    return {
        "id": one.id,
        "status": "paused" if one.paused else "running",
        "name": one.label,
        "image": one.settings.image,
        "command": _command(one),
        "created": one.since,
        "pid": one.pid,
        "session": one.session,
        "settings": one.settings.raw(),
    }


def _command(one: RemoteContainer) -> str:
    """Return the command line of the first process inside; empty where nothing runs."""
    from pytest_sandbox.container.processes import list_processes
    from pytest_sandbox.container.remote import open_handle

    with suppress(SandboxError), closing(open_handle(one)) as handle:
        return next((line for _pid, line in list_processes(handle)), "")
    return ""


# -- exec and shell


def _exec_arguments(parser: argparse.ArgumentParser) -> None:
    flags.add_terminal(parser)
    flags.add_environment(parser)
    parser.add_argument(
        "-u",
        "--user",
        metavar="USER[:GROUP]",
        help="user of the command (default: the container's)",
    )
    parser.add_argument(
        "-w", "--workdir", metavar="DIR", help="working directory inside (default: the container's)"
    )
    _id_argument(parser)
    flags.add_command(parser)


def _exec(found: argparse.Namespace) -> int:
    from pytest_sandbox.cli.attach import Command, attach
    from pytest_sandbox.container.container import open_remote
    from pytest_sandbox.container.remote import find

    command = Command(
        flags.command(found),
        interactive=found.interactive,
        tty=found.tty,
        sig_proxy=found.sig_proxy,
        env=flags.environment(found),
        workdir=found.workdir,
        user=found.user,
    )
    with open_remote(find(found.id)) as container, flags.naming_flags(found):
        return attach(container, command)


def _living_or_kept(name: str) -> Container:
    """Enter a living container of that name, or start one where a kept one ended.

    Raises :class:`SandboxError` for a name that is none.
    """
    from pytest_sandbox.container import remote, saved_layers
    from pytest_sandbox.container.container import open_remote, start_saved

    alive = remote.list_containers()
    layers = saved_layers.list_saved()
    if not remote.matching(name, [one.id for one in alive], [one.label for one in alive]):
        found = remote.matching(name, [one.id for one in layers], [one.label for one in layers])
        if found:
            return start_saved(_one_of(name, found))
    return open_remote(remote.find(name, alive))


def _shell_arguments(parser: argparse.ArgumentParser) -> None:
    _id_argument(parser)


def _shell(found: argparse.Namespace) -> int:
    from pytest_sandbox.cli.attach import Command, attach

    with _living_or_kept(found.id) as container:
        shells = [path for path in ("/bin/bash", "/bin/sh") if container.exists(path)]
        args = [*shells, "sh"][:1]
        return attach(container, Command(args, interactive=True, tty=sys.stdin.isatty()))


# -- rm


def _rm_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "ids", metavar="CONTAINER", nargs="+", help="id, beginning of an id, or name of a kept one"
    )


def _rm(found: argparse.Namespace) -> int:
    from pytest_sandbox.container import remote, saved_layers

    layers = saved_layers.list_saved()
    for name in found.ids:
        chosen = _one_of(
            name, remote.matching(name, [one.id for one in layers], [one.label for one in layers])
        )
        next(one for one in layers if one.id == chosen).remove()
        print(chosen)
    return 0


def _one_of(name: str, ids: list[str]) -> str:
    if len(ids) == 1:
        return ids[0]
    problem = f"{name!r} is ambiguous: {', '.join(ids)}" if ids else f"no kept layer is {name!r}"
    raise SandboxError(f"{problem}. `pytest-sandbox ps -a` lists them.")


# -- stats and diff


def _stats_arguments(parser: argparse.ArgumentParser) -> None:
    _format_argument(parser)
    parser.add_argument("--no-stream", action="store_true", help="print the figures once")
    parser.add_argument(
        "ids",
        metavar="CONTAINER",
        nargs="*",
        help="id, beginning of an id, or name (default: all)",
    )


def _stats(found: argparse.Namespace) -> int:
    from pytest_sandbox.cli import stats

    return stats.run(found.ids, form=found.format, once=found.no_stream or found.format == "json")


def _diff(found: argparse.Namespace) -> int:
    with _living_or_kept(found.id) as container:
        changes = container.diff()
    if found.format == "json":
        output.print_json([asdict(change) for change in changes])
    else:
        print("".join(f"{change}\n" for change in changes), end="")
    if not changes.complete:
        print(
            f"pytest-sandbox: listed {len(changes)} of at least {changes.counted} changes",
            file=sys.stderr,
        )
    return 0


def _diff_arguments(parser: argparse.ArgumentParser) -> None:
    _format_argument(parser)
    _id_argument(parser)


VERBS = (
    Verb(
        name="ps",
        usage="[-a] [-q] [--format json]",
        summary="List the running containers of this user, also those of tests",
        arguments=_ps_arguments,
        run=_ps,
    ),
    Verb(
        name="exec",
        usage="[OPTIONS] CONTAINER COMMAND [ARGUMENT...]",
        summary="Run a command in a running container",
        details="exit status: as `run`",
        arguments=_exec_arguments,
        run=_exec,
    ),
    Verb(
        name="shell",
        usage="CONTAINER",
        summary="Start a shell in a running container, or in a kept one (pytest --sandbox-keep)",
        arguments=_shell_arguments,
        run=_shell,
    ),
    Verb(
        name="rm",
        usage="CONTAINER...",
        summary="Remove kept layers of ended containers",
        arguments=_rm_arguments,
        run=_rm,
    ),
    Verb(
        name="stats",
        usage="[OPTIONS] [CONTAINER...]",
        summary="Show the resource usage of running containers every second",
        arguments=_stats_arguments,
        run=_stats,
    ),
    Verb(
        name="diff",
        usage="[--format json] CONTAINER",
        summary="List the files that a container has added (A), changed (C) and deleted (D)",
        arguments=_diff_arguments,
        run=_diff,
    ),
)
