"""``run``: a command in a new container, which is removed when the command ends."""

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

#: Seconds to wait for another `run --name`, and between two attempts to lock.
_LOCK_TIMEOUT = 30.0
_LOCK_INTERVAL = 0.01
_DETAILS = """\
IMAGE is 'host' (the root file system of this host, as copy-on-write), a directory with a root file
system, or an image, which is pulled if it is not stored.
Options of pytest-sandbox are written before IMAGE, arguments of the command after it.

exit status: the command's; 125 for an error of pytest-sandbox; 126 if the command cannot be
executed, 127 if it is not found; 128 plus the number of the signal that killed it, such as 137
after a kill for memory or --timeout.
"""


def _arguments(parser: argparse.ArgumentParser) -> None:
    flags.add_terminal(parser)
    flags.add_environment(parser)
    flags.add_to(parser)
    parser.add_argument(
        "--name",
        default="",
        metavar="NAME",
        help="name for `ps`, `exec` and others; no two running containers have the same",
    )
    parser.add_argument(
        "--entrypoint",
        metavar="PROGRAM",
        help="replaces the entry point of the image, and its default command",
    )
    parser.add_argument("-d", "--detach", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--init",
        action="store_true",
        help="no effect, for compatibility with docker: zombies are always reaped",
    )
    parser.add_argument(
        "--rm",
        action="store_true",
        help="no effect, for compatibility with docker: containers are always removed",
    )
    parser.add_argument(
        "--pull",
        choices=["missing", "always", "never"],
        default="missing",
        help="when to pull IMAGE (default: missing)",
    )
    parser.add_argument("image", metavar="IMAGE", help="root file system of the container")
    flags.add_command(parser)


def _run(found: argparse.Namespace) -> int:
    from pytest_sandbox.cli.attach import Command, attach
    from pytest_sandbox.container.container import Container

    if found.detach:
        raise SandboxError(
            "--detach is not supported: a container ends with the `run` that created it. Add & to "
            "the command line to run it in the background."
        )
    images.have(found.image, policy=found.pull)
    with flags.naming_flags(found):
        container = Container(flags.settings(found.image, found))
        container.handle.label = found.name
        with _claimed(found.name):
            container.start()
    with container, flags.naming_flags(found):
        return attach(
            container,
            Command(
                _args(container, found),
                interactive=found.interactive,
                tty=found.tty,
                sig_proxy=found.sig_proxy,
                timeout=container.settings.timeout,
            ),
        )


@contextmanager
def _claimed(name: str) -> Iterator[None]:
    """Refuse the name of a running container, and lock out other ``run --name`` during the body.

    Raises :class:`SandboxError`.
    """
    if not name:
        yield
        return
    from pytest_sandbox.client.cleanup import state_directory
    from pytest_sandbox.container.remote import list_containers

    with _locked(state_directory()):
        taken = next((one.id for one in list_containers() if name in {one.label, one.id}), None)
        if taken is not None:
            raise SandboxError(
                f"--name {name}: the container {taken} has this name. Use another one, or wait "
                "until it has ended."
            )
        yield


@contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Hold a lock (flock(2)) on a directory. Raises :class:`SandboxError` after 30 seconds."""
    import fcntl

    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SandboxError(
                        f"another process holds the lock on {directory}. Try again."
                    ) from None
                time.sleep(_LOCK_INTERVAL)
        yield
    finally:
        os.close(fd)


def _args(container: Container, found: argparse.Namespace) -> list[str]:
    """Return entry point and command, with the image's defaults by docker's rules."""
    image = container.handle.rootfs.image
    if found.entrypoint is not None:
        args = [found.entrypoint, *found.command] if found.entrypoint else found.command
    else:
        args = list(image.command(found.command)) if image else found.command
    if not args:
        raise SandboxError(
            f"the command is missing, and {found.image!r} has no default. Write it after the "
            f"image: `pytest-sandbox run {found.image} sh`."
        )
    return args


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
