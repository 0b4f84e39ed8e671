"""Docker's flags of containers and commands, and the settings that they stand for."""

from __future__ import annotations

import argparse
import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import SandboxError, SettingsError, UnsupportedError
from pytest_sandbox.settings.settings import Settings, from_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_sandbox.container.shared_network import SharedNetwork

__all__ = [
    "add_command",
    "add_environment",
    "add_terminal",
    "add_to",
    "command",
    "environment",
    "lines_of",
    "naming_flags",
    "settings",
]

# Flags with one value: their names, the key of the settings, the metavar, the help.
_VALUES: tuple[tuple[tuple[str, ...], str, str, str], ...] = (
    (
        ("-m", "--memory"),
        "memory",
        "SIZE",
        "hard limit, such as 512m; over it the kernel kills a process inside",
    ),
    (
        ("--memory-swap",),
        "memory_swap",
        "SIZE",
        "memory plus swap; -1 for no limit on swap (default: as --memory)",
    ),
    (
        ("--memory-high",),
        "memory_high",
        "SIZE",
        "over it the kernel throttles processes and reclaims memory (cgroup v2)",
    ),
    (("--cpus",), "cpus", "NUMBER", "CPU time per wall time, such as 1.5"),
    (("--cpuset-cpus",), "cpuset", "LIST", "CPUs that may be used, such as 0-1,3"),
    (
        ("--pids-limit",),
        "pids_limit",
        "N",
        "processes and threads (default: 4096; -1 for no limit)",
    ),
    (("--disk",), "disk", "SIZE", "size of the writable layer; over it writes get ENOSPC"),
    (
        ("--storage",),
        "storage",
        "WHERE",
        "where the writable layer is stored: memory (default) or disk",
    ),
    (("--shm-size",), "shm_size", "SIZE", "size of /dev/shm (default: 64m)"),
    (
        ("--network", "--net"),
        "network",
        "MODE",
        (
            "none (default): a separate network with only loopback; bridge: everything that the "
            "host reaches; host: the host's network; NAME:PORT,...: only these destinations; the "
            "name of a network: its containers"
        ),
    ),
    (("-h", "--hostname"), "hostname", "NAME", "host name inside (default: the container's id)"),
    (
        ("-u", "--user"),
        "user",
        "USER[:GROUP]",
        "user of the command, by names of the container's /etc/passwd or by UID and GID",
    ),
    (
        ("-w", "--workdir"),
        "workdir",
        "DIR",
        "working directory inside, which is created if it is missing",
    ),
    (("--gpus",), "gpus", "GPUS", "NVIDIA GPUs: all, or device=0,1"),
    (
        ("--timeout",),
        "timeout",
        "SECONDS",
        "wall time; over it all processes inside are killed (status 137)",
    ),
)
# Flags that can be repeated.
_LISTS: tuple[tuple[tuple[str, ...], str, str, str], ...] = (
    (
        ("-v", "--volume"),
        "volumes",
        "SOURCE:TARGET[:ro]",
        "mount a host directory or file; changes are not discarded",
    ),
    (
        ("-p", "--publish"),
        "publish",
        "[[HOST:]HOST_PORT:]PORT[/udp]",
        "make a port of the container reachable from this host",
    ),
    (
        ("--tmpfs",),
        "tmpfs",
        "PATH[:size=SIZE,mode=MODE,exec,ro]",
        "mount a file system in memory",
    ),
    (
        ("--add-host",),
        "extra_hosts",
        "NAME:ADDRESS",
        "add a name to /etc/hosts",
    ),
    (
        ("--device",),
        "devices",
        "SOURCE[:TARGET[:rw]]",
        "a device node of the host that may be used inside, such as /dev/fuse",
    ),
    (
        ("--device-read-bps",),
        "device_read_bps",
        "PATH:RATE",
        "bytes per second read from a block device, such as /dev/sda:1mb",
    ),
    (
        ("--device-write-bps",),
        "device_write_bps",
        "PATH:RATE",
        "bytes per second written to a block device",
    ),
    (
        ("--device-read-iops",),
        "device_read_iops",
        "PATH:RATE",
        "reads per second from a block device",
    ),
    (
        ("--device-write-iops",),
        "device_write_iops",
        "PATH:RATE",
        "writes per second to a block device",
    ),
    (("--cap-add",), "cap_add", "NAME", "add a capability to docker's default set; ALL for all"),
    (
        ("--cap-drop",),
        "cap_drop",
        "NAME",
        "remove a capability from docker's default set; ALL for all",
    ),
    (
        ("--ulimit",),
        "ulimits",
        "NAME=SOFT[:HARD]",
        "resource limit of each process, such as nofile=1024",
    ),
    (("--security-opt",), "security_opt", "OPTION", "seccomp=unconfined, no-new-privileges:false"),
)
#: Docker's other names for the fields of --mount.
_MOUNT_NAMES = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}
_MOUNT_FORMS = {
    "bind": "type=bind,source=SOURCE,target=TARGET[,readonly]",
    "tmpfs": "type=tmpfs,target=TARGET[,tmpfs-size=SIZE][,tmpfs-mode=MODE]",
}
_MOUNT_FIELDS = {
    "bind": {"source", "target", "readonly"},
    "tmpfs": {"target", "readonly", "tmpfs-size", "tmpfs-mode"},
}
_SWITCHES: tuple[tuple[str, str, str], ...] = (
    ("--read-only", "read_only", "no writable layer"),
    ("--privileged", "privileged", "all capabilities, no seccomp, no masked paths"),
)


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a container's settings."""
    for names, key, metavar, text in _VALUES:
        parser.add_argument(*names, dest=key, metavar=metavar, help=text)
    for names, key, metavar, text in _LISTS:
        parser.add_argument(*names, dest=key, metavar=metavar, action="append", help=text)
    parser.add_argument(
        "--mount",
        metavar="type=bind|tmpfs,target=TARGET[,...]",
        action=_Mount,
        help="the same as --volume (type=bind, source=, readonly) and --tmpfs (type=tmpfs, "
        "tmpfs-size=, tmpfs-mode=) in docker's other syntax",
    )
    for name, key, text in _SWITCHES:
        parser.add_argument(name, dest=key, action="store_true", default=None, help=text)


class _Mount(argparse.Action):
    """Add the value of ``--mount`` to the volumes, or to the file systems in memory."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        _option: str | None = None,
    ) -> None:
        try:
            key, item = _read_mount(values)
        except ValueError as error:
            parser.error(f"argument --mount: {values!r} is not valid; {error}")
        setattr(namespace, key, [*(getattr(namespace, key) or ()), item])


def _read_mount(text: str) -> tuple[str, str]:
    """Return the setting of a ``--mount``, and its value. Raises ValueError."""
    fields = [item.partition("=") for item in text.split(",")]
    given = {_MOUNT_NAMES.get(name, name): value for name, _equals, value in fields}
    kind = given.pop("type", "volume")
    if kind == "volume":
        raise ValueError(
            "there are no named volumes: write type=bind,source=DIRECTORY,target=TARGET"
        )
    accepted = _MOUNT_FORMS.get(kind)
    if accepted is None or given.keys() - _MOUNT_FIELDS[kind] or not given.get("target"):
        raise ValueError(f"accepted: {accepted or ' or '.join(_MOUNT_FORMS.values())}")
    read_only = given.get("readonly", "false") in {"", "true", "1"}
    if kind == "bind":
        if not given.get("source"):
            raise ValueError(f"accepted: {accepted}")
        return "volumes", f"{given['source']}:{given['target']}{':ro' if read_only else ''}"
    options = [
        *([f"size={given['tmpfs-size']}"] if "tmpfs-size" in given else []),
        *([f"mode={given['tmpfs-mode']}"] if "tmpfs-mode" in given else []),
        *(["ro"] if read_only else []),
        "exec",  # unlike --tmpfs, as with docker
    ]
    return "tmpfs", f"{given['target']}:{','.join(options)}"


#: Setting -> the flag that users know it by.
_FLAGS = {
    "image": "IMAGE",
    "env": "--env",
    **{
        key: names[-1] if key != "network" else names[0]
        for names, key, _metavar, _text in (*_VALUES, *_LISTS)
    },
    **{key: name for name, key, _text in _SWITCHES},
}
#: Accepted values that differ from those in Python.
_ACCEPTED = {
    "network": "none, bridge, host, the name of a network (`network ls`), or NAME:PORT and "
    "ADDRESS:PORT with commas"
}
#: Docker's words for values of ours.
_DOCKERS = {("network", "bridge"): "outside"}
#: ``memory=`` in a text for Python programmers.
_KEYWORD = re.compile(rf"\b({'|'.join(_FLAGS)})=")


def settings(image: str, found: argparse.Namespace) -> Settings:
    """Return the settings of the flags. Raises :class:`SettingsError`."""
    raw: dict[str, Any] = {"image": image}
    for _names, key, _metavar, _text in _VALUES:
        if (text := getattr(found, key)) is not None:
            shared = _shared_network(found) if key == "network" else None
            raw[key] = shared or from_text(key, _DOCKERS.get((key, text), text))
    for _names, key, _metavar, _text in _LISTS:
        if (items := getattr(found, key)) is not None:
            _check_each(key, items)
            raw[key] = items
    for _name, key, _text in _SWITCHES:
        if getattr(found, key):
            raw[key] = True
    if env := environment(found):
        raw["env"] = env
    return Settings(**raw)


def _shared_network(found: argparse.Namespace) -> SharedNetwork | None:
    """Return the network of this name, if there is one, for a container with this ``--name``."""
    from pytest_sandbox.container import shared_network

    one = None if ":" in found.network else shared_network.find(found.network)
    return one.named(found.name) if one else None


def _check_each(key: str, items: list[str]) -> None:
    """Raise :class:`SettingsError` for the first invalid item, to name that item alone."""
    for item in items:
        one: dict[str, Any] = {key: [item]}
        try:
            Settings(**one)
        except SettingsError as error:
            raise SettingsError(key, item, error.accepted) from None


@contextmanager
def naming_flags(found: argparse.Namespace) -> Iterator[None]:
    """Replace settings with flags in the errors of the body, and their values with what the user
    typed.
    """
    try:
        yield
    except SettingsError as error:
        if error.key not in _FLAGS:
            raise
        is_general = error.key in _ACCEPTED and "=Network()" in error.accepted
        accepted = _ACCEPTED[error.key] if is_general else _accepted(error.accepted)
        value = _typed(found, error.key, error.value)
        text = f"{_FLAGS[error.key]} {value} is not valid; accepted: {accepted}"
        raise SandboxError(text) from error
    except UnsupportedError as error:
        key, equals, value = error.feature.partition("=")
        if not equals or key not in _FLAGS:
            raise
        typed = getattr(found, key, None)
        feature = f"{_FLAGS[key]} {repr(typed) if isinstance(typed, str) else value}".strip()
        raise UnsupportedError(feature, _with_flags(error.remedy)) from error


def _typed(found: argparse.Namespace, key: str, value: object) -> str:
    """Return the text that the user typed; of a flag that can be repeated, the invalid items."""
    typed = getattr(found, key, None)
    if isinstance(typed, str):
        return repr(typed)
    return " ".join(map(repr, value)) if isinstance(value, (list, tuple)) else repr(value)


def _accepted(form: str) -> str:
    """Return the accepted form for one item; the settings take a list of them."""
    if form.startswith("items among "):
        return f"one of {form.removeprefix('items among ')}"
    return _with_flags(form.removeprefix("items "))


def _with_flags(text: str) -> str:
    """Replace ``memory=`` with ``--memory``, and likewise each other setting."""
    return _KEYWORD.sub(lambda match: f"{_FLAGS[match[1]]} ", text).replace("  ", " ")


def add_environment(parser: argparse.ArgumentParser) -> None:
    """Add the flags of environment variables."""
    parser.add_argument(
        "-e",
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="environment variable; without a value, the value of this process",
    )
    parser.add_argument(
        "--env-file",
        action="append",
        default=[],
        metavar="FILE",
        help="file of NAME[=VALUE] lines, with # for comments",
    )


def environment(found: argparse.Namespace) -> dict[str, str]:
    """Return the variables of the flags.

    ``--env`` overrides ``--env-file``. A name without a value has the value of this process, and is
    left out if this process does not have it. Raises :class:`SandboxError`.
    """
    lines = [line for path in found.env_file for line in lines_of(path, "--env-file", "NAME")]
    env: dict[str, str] = {}
    for line in [*lines, *found.env]:
        name, equals, value = line.partition("=")
        if not name:
            raise SandboxError(
                f"--env {line!r}: the name is missing. Write NAME=VALUE, or NAME alone for the "
                "value of this process."
            )
        if equals:
            env[name] = value
        elif name in os.environ:
            env[name] = os.environ[name]
    return env


def lines_of(path: str, flag: str, name: str) -> list[str]:
    """Return the lines of a file, without comments and empty lines; ``flag`` and ``name`` are how
    the error names it. Raises :class:`SandboxError`.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.rstrip("\r\n").lstrip() for line in file]
    except OSError as error:
        raise SandboxError(
            f"{flag} {path}: {error.strerror}. Use a readable file of {name}=VALUE lines."
        ) from error
    return [line for line in lines if line and not line.startswith("#")]


def add_terminal(parser: argparse.ArgumentParser) -> None:
    """Add the flags of standard input, terminal and signals."""
    parser.add_argument(
        "-i",
        "--interactive",
        action="store_true",
        help="let the command read standard input",
    )
    parser.add_argument(
        "-t", "--tty", action="store_true", help="run the command on a new terminal"
    )
    parser.add_argument(
        "--sig-proxy",
        type=_boolean,
        default=True,
        metavar="true|false",
        help="forward signals to the command (default: true)",
    )


def _boolean(text: str) -> bool:
    try:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    except KeyError:
        raise ValueError(text) from None


def add_command(parser: argparse.ArgumentParser) -> None:
    """Add the command, which takes all remaining arguments, also options."""
    parser.add_argument(
        "command",
        metavar="COMMAND",
        nargs=argparse.REMAINDER,
        help="command with its arguments",
    )


def command(found: argparse.Namespace) -> list[str]:
    """Return the command and its arguments. Raises :class:`SandboxError` if it is missing."""
    if not found.command:
        raise SandboxError("the command is missing. Write it last, such as `sh`.")
    return list(found.command)
