"""``cp``: files between this host and a container."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from pytest_sandbox.cli.verb import Verb
from pytest_sandbox.errors import ContainerStopped, SandboxError

if TYPE_CHECKING:
    import argparse

    from pytest_sandbox.container.container import Container

__all__ = ["VERBS"]

_DETAILS = """\
SOURCE or TARGET is CONTAINER:PATH; the other one is a path of this host, or - for a tar archive on
standard input or output. A path that begins with / or . is one of this host. DIRECTORY/. is the
content of a directory.
Links of a container are followed inside it, never on this host. Devices, sockets, FIFOs and
set-user-ID bits are not copied.
"""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-a",
        "--archive",
        action="store_true",
        help="files keep their UID and GID (default: they belong to the caller, or inside to root)",
    )
    parser.add_argument(
        "-L", "--follow-link", action="store_true", help="follow a link that is SOURCE itself"
    )
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="no effect, for compatibility with docker"
    )
    parser.add_argument("source", metavar="SOURCE", help="what is copied")
    parser.add_argument("target", metavar="TARGET", help="where it is copied to")


def _place(text: str) -> tuple[str, str]:
    """Return the container and the path of an argument; "" for a path of this host."""
    name, colon, path = text.partition(":")
    if not colon or text.startswith((".", "/")):
        return "", text
    return name, path if path.startswith("/") else f"/{path}"


def _copy(found: argparse.Namespace) -> int:
    (source_of, source), (target_of, target) = _place(found.source), _place(found.target)
    if source_of and target_of:
        raise SandboxError(
            "copying between containers is not supported: copy to a directory of this host first"
        )
    if source_of:
        _copy_out(found, source_of, source, target)
    elif target_of:
        _copy_in(found, source, target_of, target)
    else:
        raise SandboxError("must specify at least one container source: write CONTAINER:PATH")
    return 0


def _copy_out(found: argparse.Namespace, name: str, source: str, target: str) -> None:
    from pytest_sandbox.cli.containers import open_or_restart
    from pytest_sandbox.container.archive_copy import write_archive

    with open_or_restart(name) as container:
        if target == "-":
            if sys.stdout.isatty():
                raise SandboxError("an archive is not written to a terminal: redirect the output")
            write_archive(container.handle, source, sys.stdout.buffer)
            return
        _check_parent(target)
        container.copy_out(source, target, owners=found.archive)


def _check_parent(target: str) -> None:
    """Raise :class:`SandboxError`, as docker, unless ``target`` can be created."""
    is_directory = target.endswith("/")
    parent = target if is_directory else os.path.dirname(os.path.abspath(target))
    if not os.path.isdir(parent):
        raise SandboxError(f"{parent}: there is no such directory. Create it first.")


def _copy_in(found: argparse.Namespace, source: str, name: str, target: str) -> None:
    from pytest_sandbox.container.archive_copy import extract_archive

    with _running(name) as container:
        if source == "-":
            if sys.stdin.isatty():
                raise SandboxError("give an archive on stdin: tar -c FILE... | pytest-sandbox cp -")
            extract_archive(container.handle, sys.stdin.buffer, target)
            return
        if found.follow_link and os.path.islink(source):
            source = os.path.realpath(source)
        container.copy_in(source, target, owners=found.archive)


def _running(name: str) -> Container:
    """Open a running container. Raises :class:`ContainerStopped` for an ended one."""
    from pytest_sandbox.cli.ended import ids_of, list_ended
    from pytest_sandbox.container import detached, remote
    from pytest_sandbox.container.container import open_remote

    running = detached.list_running()
    is_running = remote.matching(name, [one.id for one in running], [one.label for one in running])
    if not is_running and ids_of(name, list_ended()):
        raise ContainerStopped(
            f"the container {name} has ended: its files can be copied out, but not changed"
        )
    return open_remote(remote.find(name, running))


VERBS = (
    Verb(
        name="cp",
        usage="[-a] [-L] SOURCE TARGET",
        summary="Copy files between this host and a container",
        details=_DETAILS,
        arguments=_arguments,
        run=_copy,
    ),
)
