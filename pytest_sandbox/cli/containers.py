"""``ps``, ``exec``, ``shell``, ``stats`` and ``diff``: running containers of this user, and ended
ones.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from pytest_sandbox.cli import ended, flags, output, ps
from pytest_sandbox.cli.filters import add_filter
from pytest_sandbox.cli.format import add_format
from pytest_sandbox.cli.verb import Verb

if TYPE_CHECKING:
    import argparse

    from pytest_sandbox.container.container import Container

__all__ = ["VERBS", "open_or_restart"]


def _id_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "id", metavar="CONTAINER", help="its id, the beginning of its id, or its name"
    )


# -- ps


def _ps_arguments(parser: argparse.ArgumentParser) -> None:
    add_format(parser, [*ps.LISTING.headers, "Label"])
    parser.add_argument("-q", "--quiet", action="store_true", help="print ids only")
    parser.add_argument(
        "--no-trunc",
        action="store_true",
        help="no effect, for compatibility with docker: ids and commands are always whole",
    )
    parser.add_argument(
        "-a",
        "--all",
        action="store_true",
        help="also list ended containers: detached ones, and those whose layers "
        "`pytest --sandbox-keep` has kept",
    )
    add_filter(
        parser,
        ps.condition,
        "only containers with this id, name, status, ancestor (image), label, exited (exit "
        "status), network or published port (publish), or created before or since another one",
    )


def _ps(found: argparse.Namespace) -> int:
    entries = ps.entries(every=found.all or ps.asks_for_ended(found.filter), only=found.filter)
    if found.quiet:
        print("".join(f"{entry['id']}\n" for entry in entries), end="")
    elif found.format.word == "json":
        output.print_json(entries)
    else:
        found.format.print(map(ps.row, entries), ps.LISTING)
    return 0


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
    from pytest_sandbox.container.detached import list_running
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
    with open_remote(find(found.id, list_running())) as container, flags.naming_flags(found):
        return attach(container, command)


def open_or_restart(name: str) -> Container:
    """Open the running container of that name, or start a new one with the content of an ended one.

    Raises :class:`SandboxError` for an unknown name.
    """
    from pytest_sandbox.container import detached, remote
    from pytest_sandbox.container.container import open_remote

    running = detached.list_running()
    if not remote.matching(name, [one.id for one in running], [one.label for one in running]):
        started = ended.start(name, ended.list_ended())
        if started is not None:
            return started
    return open_remote(remote.find(name, running))


def _shell_arguments(parser: argparse.ArgumentParser) -> None:
    _id_argument(parser)


def _shell(found: argparse.Namespace) -> int:
    from pytest_sandbox.cli.attach import Command, attach

    with open_or_restart(found.id) as container:
        shells = [path for path in ("/bin/bash", "/bin/sh") if container.exists(path)]
        args = [*shells, "sh"][:1]
        return attach(container, Command(args, interactive=True, tty=sys.stdin.isatty()))


# -- stats and diff


def _stats_arguments(parser: argparse.ArgumentParser) -> None:
    from pytest_sandbox.cli.stats import LISTING

    add_format(parser, LISTING.headers)
    parser.add_argument("--no-stream", action="store_true", help="print the figures once")
    parser.add_argument(
        "ids",
        metavar="CONTAINER",
        nargs="*",
        help="id, beginning of an id, or name (default: all)",
    )


def _stats(found: argparse.Namespace) -> int:
    from pytest_sandbox.cli import stats

    is_once = found.no_stream or found.format.word != "table"
    return stats.run(found.ids, form=found.format, once=is_once)


def _diff(found: argparse.Namespace) -> int:
    with open_or_restart(found.id) as container:
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
    parser.add_argument(
        "--format",
        choices=["table", "json"],
        default="table",
        help="json: one list, for programs (default: table)",
    )
    _id_argument(parser)


VERBS = (
    Verb(
        name="ps",
        usage="[-a] [-q] [--filter KEY=VALUE] [--format FORMAT]",
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
        summary="Start a shell in a running container, or in a new one with the files of an ended "
        "one",
        arguments=_shell_arguments,
        run=_shell,
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
