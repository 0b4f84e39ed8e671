"""``run``: a command in a container of its own, which goes when the command ends."""

from __future__ import annotations

import argparse
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_sandbox.cli import flags, images
from pytest_sandbox.cli.verb import Verb
from pytest_sandbox.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_sandbox.container.container import Container

__all__ = ["VERBS"]

#: How long to wait for another `run --name`, and between two looks, in seconds.
_PATIENCE = 30.0
_EVERY = 0.01
_DETAILS = """\
IMAGE is 'host' (the root of this host, as copy-on-write), a directory with a root file system, or a
stored image; one that is not stored is pulled first.
Options come before IMAGE; what follows it is the command's.

exit status: the command's own; 125 for an error of pytest-sandbox, 126 and 127 for a command that
cannot be executed or found, 128 and the signal's number for one that a signal ended: 137 after a
kill, for memory or over --timeout.
"""


def _arguments(parser: argparse.ArgumentParser) -> None:
    flags.add_terminal(parser)
    flags.add_environment(parser)
    flags.add_to(parser)
    parser.add_argument(
        "--name",
        default="",
        metavar="NAME",
        help="what `ps` shows and `exec` finds it by; no two living ones have the same",
    )
    parser.add_argument(
        "--entrypoint",
        metavar="PROGRAM",
        help="in place of the image's; the image's own command is left out then",
    )
    parser.add_argument("-d", "--detach", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--init", action="store_true", help="accepted for docker's sake: the dead are always reaped"
    )
    parser.add_argument(
        "--rm",
        action="store_true",
        help="accepted for docker's sake: a container always goes when its command ends",
    )
    parser.add_argument(
        "--pull",
        choices=["missing", "always", "never"],
        default="missing",
        help="when to pull IMAGE (default: missing)",
    )
    parser.add_argument("image", metavar="IMAGE", help="what the container's root is")
    flags.add_command(parser)


def _run(found: argparse.Namespace) -> int:
    from pytest_sandbox.cli.attach import Command, attach
    from pytest_sandbox.container.container import Container

    if found.detach:
        raise SandboxError(
            "there is no --detach: a container lives as long as the `run` that made it. Put & "
            "behind it, as for any command."
        )
    images.ensure_image(found.image, policy=found.pull)
    with flags.named():
        container = Container(flags.settings(found.image, found))
        container.label = found.name
        with _claimed(found.name):
            container.start()
    with container, flags.named():
        return attach(
            container,
            Command(
                _words(container, found),
                interactive=found.interactive,
                tty=found.tty,
                sig_proxy=found.sig_proxy,
                timeout=container.settings.timeout,
            ),
        )


@contextmanager
def _claimed(name: str) -> Iterator[None]:
    """Refuse a name that a living container has; no other ``run`` takes it meanwhile."""
    if not name:
        yield
        return
    from pytest_sandbox.client.cleanup import state_directory
    from pytest_sandbox.container.remote import living

    with _locked(state_directory()):
        taken = next((one.id for one in living() if name in {one.label, one.id}), None)
        if taken is not None:
            raise SandboxError(
                f"--name {name}: the container {taken} has this name. Take another one, or wait "
                "until it has ended."
            )
        yield


@contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Hold a lock (flock(2)) on a directory. Raises :class:`SandboxError` after 30 seconds."""
    import fcntl

    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SandboxError(
                        f"another process holds the lock on {directory}. Try again."
                    ) from None
                time.sleep(_EVERY)
        yield
    finally:
        os.close(fd)


def _words(container: Container, found: argparse.Namespace) -> list[str]:
    """Return entry point and command, from the image where they are not given; docker's rules."""
    image = container.rootfs.image
    if found.entrypoint is not None:
        words = [found.entrypoint, *found.command] if found.entrypoint else found.command
    else:
        words = list(image.command(found.command)) if image else found.command
    if not words:
        raise SandboxError(
            f"no command for the image {found.image!r}. Write it after the image: `pytest-sandbox "
            f"run {found.image} sh`."
        )
    return words


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
