"""``run``: a command in a new container, in the foreground or (-d) in the background."""

from __future__ import annotations

import argparse
import re
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pytest_sandbox.cli import flags, images
from pytest_sandbox.cli.detach import detach
from pytest_sandbox.cli.names import claimed
from pytest_sandbox.cli.verb import Verb
from pytest_sandbox.errors import SandboxError, SettingsError

if TYPE_CHECKING:
    from pytest_sandbox.cli.detach import Report
    from pytest_sandbox.container.container import Container
    from pytest_sandbox.container.detached import Facts

__all__ = ["VERBS", "label"]

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
        help="name for `ps`, `exec` and others, of letters, digits and _ . -; no two running "
        "containers have the same",
    )
    parser.add_argument(
        "--entrypoint",
        metavar="PROGRAM",
        help="replaces the entry point of the image, and its default command",
    )
    parser.add_argument(
        "--init",
        action="store_true",
        help="no effect, for compatibility with docker: zombies are always reaped",
    )
    _add_detached(parser)
    parser.add_argument(
        "--pull",
        choices=["missing", "always", "never"],
        default="missing",
        help="when to pull IMAGE (default: missing)",
    )
    parser.add_argument("image", metavar="IMAGE", help="root file system of the container")
    flags.add_command(parser)


def _add_detached(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a container in the background."""
    parser.add_argument(
        "-d",
        "--detach",
        action="store_true",
        help="run in the background, print the id, and keep the container when it has ended",
    )
    parser.add_argument(
        "--restart",
        type=_restart_policy,
        default="no",
        metavar="POLICY",
        help="with -d, start the command again when it ends: no (default), on-failure[:N], "
        "always, unless-stopped; not after `stop` and `kill`",
    )
    parser.add_argument(
        "-l",
        "--label",
        action="append",
        default=[],
        type=label,
        metavar="KEY[=VALUE]",
        help="with -d, a label for `ps --filter` and `inspect`",
    )
    parser.add_argument(
        "--label-file",
        action="append",
        default=[],
        metavar="FILE",
        help="with -d, a file of KEY[=VALUE] lines, with # for comments",
    )
    parser.add_argument(
        "--log-opt",
        action="append",
        default=[],
        metavar="max-size=SIZE|max-file=N",
        help="with -d, limit of the log: at most N files of SIZE, of which the oldest is removed "
        "(default: max-size=20m, max-file=5)",
    )
    parser.add_argument(
        "--rm",
        action="store_true",
        help="with -d, remove the container when it has ended; without -d, it always is",
    )


def _run(found: argparse.Namespace) -> int:
    from pytest_sandbox.cli.attach import Command, attach
    from pytest_sandbox.container.container import Container

    _check_flags_of_detached(found)
    _log_options(found)
    images.ensure_image(found.image, policy=found.pull)
    if found.detach:
        return detach(lambda report: _supervise(found, report))
    with flags.naming_flags(found):
        container = Container(flags.settings(found.image, found))
        container.handle.label = found.name
        with claimed(found.name):
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


def _check_flags_of_detached(found: argparse.Namespace) -> None:
    """Raise :class:`SandboxError` for flags that need -d, or contradict each other."""
    if not found.detach:
        for flag, is_given in (
            ("--restart", found.restart != "no"),
            ("--label", found.label),
            ("--label-file", found.label_file),
            ("--log-opt", found.log_opt),
        ):
            if is_given:
                raise SandboxError(
                    f"{flag} needs -d: without it, the container ends with this command. Add -d, "
                    f"or leave out {flag}."
                )
    elif found.rm and found.restart != "no":
        raise SandboxError(
            f"--rm and --restart {found.restart} contradict each other. Leave out one of them."
        )


def _restart_policy(text: str) -> str:
    if not re.fullmatch(r"no|always|unless-stopped|on-failure(:[0-9]{1,9})?", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not valid; accepted: no, on-failure, on-failure:N, always, unless-stopped"
        )
    return text


def label(text: str) -> tuple[str, str]:
    """Return the key and the value of a ``--label``."""
    key, _equals, value = text.partition("=")
    if not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid; accepted: KEY or KEY=VALUE")
    return key, value


def _supervise(found: argparse.Namespace, report: Report) -> None:
    """Start the container of ``run -d`` in its supervisor, and supervise it until its end."""
    from pytest_sandbox.cli.supervisor import Supervisor
    from pytest_sandbox.container.container import Container

    with flags.naming_flags(found):
        container = Container(flags.settings(found.image, found))
        container.handle.label = found.name
        with ExitStack() as undo:
            undo.callback(container.close)
            with claimed(found.name):
                container.start()
                supervisor = Supervisor(container, _facts(container, found))
            undo.pop_all()
            supervisor.supervise(report)


def _facts(container: Container, found: argparse.Namespace) -> Facts:
    """Return what other processes get to know of a detached container."""
    from pytest_sandbox.container.build_spec import serializable

    handle = container.handle
    from pytest_sandbox.container import detached

    return detached.Facts(
        id=container.id,
        image=str(found.image),
        image_id=_stored_id(container),
        network=getattr(container.settings.network, "name", ""),
        command=_args(container, found),
        entrypoint=_entrypoint(container, found),
        created=time.time(),
        settings=serializable(container.settings),
        env=handle.rootfs.environment(container.hostname) if found.image != "host" else {},
        labels=_labels(container, found),
        log_options=_log_options(found),
        ports=_ports(container),
        tty=found.tty,
        stdin=found.interactive,
        restart=found.restart,
        remove=found.rm,
        stop_signal=handle.rootfs.stop_signal,
    )


def _log_options(found: argparse.Namespace) -> dict[str, str]:
    """Return the options of the log, with their defaults. Raises :class:`SandboxError`."""
    from pytest_sandbox.container.detached_log import LogLimits

    try:
        given = LogLimits.read(one.partition("=")[::2] for one in found.log_opt)
    except SettingsError as error:
        text = f"--log-opt {error.value!r} is not valid; accepted: {error.accepted}"
        raise SandboxError(text) from error
    return given.options


def _labels(container: Container, found: argparse.Namespace) -> dict[str, str]:
    """Return the labels of the image, of --label-file and of --label; the last have precedence.

    Raises :class:`SandboxError`.
    """
    image = container.handle.rootfs.image
    lines = [
        line for path in found.label_file for line in flags.lines_of(path, "--label-file", "KEY")
    ]
    if (wrong := next((line for line in lines if line.startswith("=")), None)) is not None:
        raise SandboxError(f"--label-file: {wrong!r}: the key is missing. Write KEY=VALUE.")
    of_image = (image.config.get("Labels") or {}) if image else {}
    labels = {**of_image, **dict(line.partition("=")[::2] for line in lines), **dict(found.label)}
    return dict(sorted(labels.items()))  # as docker prints them


def _stored_id(container: Container) -> str:
    image = container.handle.rootfs.image
    return "" if image is None or image.directory else image.id


def _ports(container: Container) -> list[tuple[str, str, int]]:
    """Return the published ports: that of 127.0.0.1 or the given address, if there is one, and
    that of the container's own address.
    """
    ports = []
    for mapping in container.settings.publish:
        key, port = f"{mapping.port}/{mapping.protocol}", container.ports[mapping.key]
        if mapping.host_port is not None:
            ports.append((key, mapping.host or "127.0.0.1", port))
        ports.append((key, str(container.host_address), port))
    return ports


def _entrypoint(container: Container, found: argparse.Namespace) -> list[str]:
    """Return the first arguments of the command: --entrypoint, else the image's entry point."""
    if found.entrypoint is not None:
        return [found.entrypoint] if found.entrypoint else []
    image = container.handle.rootfs.image
    return list(image.config.get("Entrypoint") or ()) if image else []


def _args(container: Container, found: argparse.Namespace) -> list[str]:
    """Return entry point and command, with the image's defaults by docker's rules."""
    image = container.handle.rootfs.image
    if found.entrypoint is not None:
        args = [*_entrypoint(container, found), *found.command]
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
