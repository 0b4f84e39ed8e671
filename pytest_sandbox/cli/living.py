"""``ps``, ``exec``, ``stats``, ``diff`` and ``shell``: containers that other processes of this user have."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from pytest_sandbox.cli import flags, screen
from pytest_sandbox.cli.verb import Verb
from pytest_sandbox.errors import SandboxError

if TYPE_CHECKING:
    import argparse

    from pytest_sandbox.container.living import Living

__all__ = ["VERBS"]


def _format_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=["table", "json"], default="table", help="json: one list, for programs (default: table)")


def _id_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="CONTAINER", help="its id, the beginning of its id, or its name")


# -- ps


def _ps_arguments(parser: argparse.ArgumentParser) -> None:
    _format_argument(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print ids only")


def _ps(found: argparse.Namespace) -> int:
    from pytest_sandbox.container.living import living

    ones = living()
    if found.quiet:
        print("".join(f"{one.id}\n" for one in ones), end="")
    elif found.format == "json":
        screen.print_json([_card(one) for one in ones])
    else:
        rows = [(one.id, one.settings.image, _command(one), _age(one), one.label) for one in ones]
        screen.print_table(("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "NAME"), rows)
    return 0


def _card(one: Living) -> dict[str, object]:
    return {
        "id": one.id,
        "name": one.label,
        "image": one.settings.image,
        "command": _command(one),
        "created": one.since,
        "pid": one.pid,
        "session": one.session,
        "settings": one.settings.raw(),
    }


def _command(one: Living) -> str:
    """Return the command line of the first process inside; empty where nothing runs."""
    from pytest_sandbox.container.living import enter

    with suppress(SandboxError), enter(one) as entered:
        return next((line for _pid, line in entered.processes()), "")
    return ""


def _age(one: Living) -> str:
    return f"{screen.duration(max(0.0, time.time() - one.since))} ago"


# -- exec and shell


def _exec_arguments(parser: argparse.ArgumentParser) -> None:
    flags.add_terminal(parser)
    flags.add_environment(parser)
    parser.add_argument("-u", "--user", metavar="USER[:GROUP]", help="who runs the command (default: as the container's own commands)")
    parser.add_argument("-w", "--workdir", metavar="DIR", help="working folder inside (default: the container's)")
    _id_argument(parser)
    flags.add_command(parser)


def _exec(found: argparse.Namespace) -> int:
    from pytest_sandbox.cli.attach import Command, attach
    from pytest_sandbox.container.living import enter, find

    command = Command(
        flags.words(found),
        interactive=found.interactive,
        tty=found.tty,
        sig_proxy=found.sig_proxy,
        env=flags.environment(found),
        workdir=found.workdir,
        user=found.user,
    )
    with enter(find(found.id)) as container:
        return attach(container, command)


def _shell_arguments(parser: argparse.ArgumentParser) -> None:
    _id_argument(parser)


def _shell(found: argparse.Namespace) -> int:
    import sys

    from pytest_sandbox.cli.attach import Command, attach
    from pytest_sandbox.container.living import enter, find

    with enter(find(found.id)) as container:
        words = next(([path] for path in ("/bin/bash", "/bin/sh") if container.exists(path)), ["sh"])
        return attach(container, Command(words, interactive=True, tty=sys.stdin.isatty()))


# -- stats and diff


def _stats_arguments(parser: argparse.ArgumentParser) -> None:
    _format_argument(parser)
    parser.add_argument("--no-stream", action="store_true", help="print once, and end")
    parser.add_argument("ids", metavar="CONTAINER", nargs="*", help="ids, beginnings of ids, or names (default: all)")


def _stats(found: argparse.Namespace) -> int:
    from pytest_sandbox.cli import watch

    return watch.run(found.ids, form=found.format, once=found.no_stream or found.format == "json")


def _diff(found: argparse.Namespace) -> int:
    from pytest_sandbox.container.living import enter, find

    with enter(find(found.id)) as container:
        changes = container.diff()
    if found.format == "json":
        screen.print_json([asdict(change) for change in changes])
    else:
        print("".join(f"{change}\n" for change in changes), end="")
    return 0


def _diff_arguments(parser: argparse.ArgumentParser) -> None:
    _format_argument(parser)
    _id_argument(parser)


VERBS = (
    Verb(
        name="ps",
        usage="[--format json] [-q]",
        summary="List the living containers of this user, those of test sessions too",
        arguments=_ps_arguments,
        run=_ps,
    ),
    Verb(
        name="exec",
        usage="[OPTIONS] CONTAINER COMMAND [ARGUMENT...]",
        summary="Run one more command in a living container",
        details="exit status: as `run`",
        arguments=_exec_arguments,
        run=_exec,
    ),
    Verb(
        name="shell",
        usage="CONTAINER",
        summary="Look around in a container",
        arguments=_shell_arguments,
        run=_shell,
    ),
    Verb(
        name="stats",
        usage="[OPTIONS] [CONTAINER...]",
        summary="Show what living containers use, again every second",
        arguments=_stats_arguments,
        run=_stats,
    ),
    Verb(
        name="diff",
        usage="[--format json] CONTAINER",
        summary="Show what a container has added (A), changed (C) and deleted (D)",
        arguments=_diff_arguments,
        run=_diff,
    ),
)
