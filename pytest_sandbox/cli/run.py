"""``run``: a command in a container of its own, which goes when the command ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_sandbox.cli import flags
from pytest_sandbox.cli.attach import attach
from pytest_sandbox.cli.verb import Verb
from pytest_sandbox.errors import SandboxError

if TYPE_CHECKING:
    import argparse

__all__ = ["VERBS"]

_DETAILS = """\
IMAGE is 'host' (the root of this host, as copy-on-write), a folder with a root file system, or a stored image.
Options come before IMAGE; what follows it is the command's.

exit status: the command's own; 125 for an error of pytest-sandbox, 126 and 127 for a command that cannot be executed or found,
128 and the signal's number for one that a signal ended: 137 after a kill, for memory or over --timeout.
"""


def _arguments(parser: argparse.ArgumentParser) -> None:
    flags.add_terminal(parser)
    flags.add_environment(parser)
    flags.add_to(parser)
    parser.add_argument("--rm", action="store_true", help="accepted for docker's sake: a container always goes when its command ends")
    parser.add_argument("image", metavar="IMAGE", help="what the container's root is")
    flags.add_command(parser)


def _run(found: argparse.Namespace) -> int:
    from pytest_sandbox.container import Container

    settings = flags.settings(found.image, found)
    if not found.command:
        raise SandboxError(f"no command for the image {found.image!r}. Write it after the image: `pytest-sandbox run {found.image} sh`.")
    with Container(settings) as container:
        return attach(container, found.command, interactive=found.interactive, tty=found.tty)


VERBS = (
    Verb(
        name="run",
        usage="[OPTIONS] IMAGE COMMAND [ARGUMENT...]",
        summary="Run a command in a new container",
        details=_DETAILS,
        arguments=_arguments,
        run=_run,
    ),
)
