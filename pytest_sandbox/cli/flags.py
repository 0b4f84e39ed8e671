"""Docker's flags for what a container and a command are like, and the settings that they stand
for.
"""

from __future__ import annotations

import argparse
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import SandboxError, SettingsError, UnsupportedError
from pytest_sandbox.settings import Settings, from_text

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "add_command",
    "add_environment",
    "add_terminal",
    "add_to",
    "environment",
    "named",
    "settings",
    "words",
]

# Flags of one value: the words, the key of the settings, the metavar, the help.
_VALUES: tuple[tuple[tuple[str, ...], str, str, str], ...] = (
    (
        ("-m", "--memory"),
        "memory",
        "SIZE",
        "hard cap, such as 512m; over it the kernel kills inside",
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
        "over it the kernel slows down and takes back memory (cgroup v2)",
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
        "where the writable layer lives: memory (default) or disk",
    ),
    (("--shm-size",), "shm_size", "SIZE", "size of /dev/shm (default: 64m)"),
    (
        ("--network", "--net"),
        "network",
        "MODE",
        "none (default): a network of its own with loopback up; host: this host's",
    ),
    (("-h", "--hostname"), "hostname", "NAME", "host name inside (default: the container's id)"),
    (
        ("-u", "--user"),
        "user",
        "USER[:GROUP]",
        "who runs the command: names or numbers of the container's own files",
    ),
    (("-w", "--workdir"), "workdir", "DIR", "working directory inside, made if it is not there"),
    (
        ("--timeout",),
        "timeout",
        "SECONDS",
        "wall time; over it everything inside is killed (status 137)",
    ),
)
# Flags that may be given again and again.
_LISTS: tuple[tuple[tuple[str, ...], str, str, str], ...] = (
    (
        ("-v", "--volume"),
        "volumes",
        "SOURCE:TARGET[:ro]",
        "host directory or file that is not thrown away",
    ),
    (
        ("--device-read-bps",),
        "device_read_bps",
        "PATH:RATE",
        "bytes a second read from a block device, such as /dev/sda:1mb",
    ),
    (
        ("--device-write-bps",),
        "device_write_bps",
        "PATH:RATE",
        "bytes a second written to a block device",
    ),
    (
        ("--device-read-iops",),
        "device_read_iops",
        "PATH:RATE",
        "reads a second from a block device",
    ),
    (
        ("--device-write-iops",),
        "device_write_iops",
        "PATH:RATE",
        "writes a second to a block device",
    ),
    (("--cap-add",), "cap_add", "NAME", "capability beyond docker's default set; ALL for all"),
    (("--cap-drop",), "cap_drop", "NAME", "capability less than docker's default set; ALL for all"),
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
_SWITCHES: tuple[tuple[str, str, str], ...] = (
    ("--read-only", "read_only", "no writable layer"),
    ("--privileged", "privileged", "all capabilities, no seccomp, no masked paths"),
)


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a container."""
    for words, key, metavar, text in _VALUES:
        parser.add_argument(*words, dest=key, metavar=metavar, help=text)
    for words, key, metavar, text in _LISTS:
        parser.add_argument(*words, dest=key, metavar=metavar, action="append", help=text)
    parser.add_argument(
        "--mount",
        dest="volumes",
        metavar="type=bind,source=SOURCE,target=TARGET[,readonly]",
        action="append",
        type=_volume_of_mount,
        help="the same as --volume, in docker's longer form",
    )
    for word, key, text in _SWITCHES:
        parser.add_argument(word, dest=key, action="store_true", default=None, help=text)


def _volume_of_mount(text: str) -> str:
    """Return docker's ``--mount`` as ``--volume`` has it.

    Raises :class:`argparse.ArgumentTypeError`.
    """
    fields = [item.partition("=") for item in text.split(",")]
    given = {_MOUNT_NAMES.get(name, name): value for name, _equals, value in fields}
    unknown = given.keys() - {"type", "source", "target", "readonly"}
    if unknown or given.get("type") != "bind" or not given.get("source") or not given.get("target"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not valid; accepted: type=bind,source=SOURCE,target=TARGET[,readonly]"
        )
    read_only = given.get("readonly", "false") in {"", "true", "1"}
    return f"{given['source']}:{given['target']}{':ro' if read_only else ''}"


#: What a person has written for each setting.
_FLAGS = {
    "image": "IMAGE",
    "env": "--env",
    **{
        key: words[-1] if key != "network" else words[0]
        for words, key, _metavar, _text in (*_VALUES, *_LISTS)
    },
    **{key: word for word, key, _text in _SWITCHES},
}


def settings(image: str, found: argparse.Namespace) -> Settings:
    """Return the settings that the flags stand for. Raises :class:`SettingsError`."""
    raw: dict[str, Any] = {"image": image}
    for _words, key, _metavar, _text in _VALUES:
        if (text := getattr(found, key)) is not None:
            raw[key] = from_text(key, text)
    for _words, key, _metavar, _text in _LISTS:
        if (items := getattr(found, key)) is not None:
            _check_each(key, items)
            raw[key] = items
    for _word, key, _text in _SWITCHES:
        if getattr(found, key):
            raw[key] = True
    if env := environment(found):
        raw["env"] = env
    return Settings(**raw)


def _check_each(key: str, items: list[str]) -> None:
    """Raise for the first wrong item alone, before all are read as one value."""
    for item in items:
        one: dict[str, Any] = {key: [item]}
        try:
            Settings(**one)
        except SettingsError as error:
            raise SettingsError(key, item, error.accepted) from None


@contextmanager
def named() -> Iterator[None]:
    """Name the flag, in place of the setting, in errors about a setting."""
    try:
        yield
    except SettingsError as error:
        if error.key not in _FLAGS:
            raise
        accepted = error.accepted.removeprefix("items ")
        text = f"{_FLAGS[error.key]} {_as_typed(error.value)} is not valid; accepted: {accepted}"
        raise SandboxError(text) from error
    except UnsupportedError as error:
        key, equals, value = error.feature.partition("=")
        if not equals or key not in _FLAGS:
            raise
        raise UnsupportedError(f"{_FLAGS[key]} {value}".strip(), error.remedy) from error


def _as_typed(value: object) -> str:
    return " ".join(map(repr, value)) if isinstance(value, (list, tuple)) else repr(value)


def add_environment(parser: argparse.ArgumentParser) -> None:
    """Add the two flags of environment variables."""
    parser.add_argument(
        "-e",
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="environment variable; without a value, this process's",
    )
    parser.add_argument(
        "--env-file",
        action="append",
        default=[],
        metavar="FILE",
        help="file of NAME[=VALUE] lines, # for comments",
    )


def environment(found: argparse.Namespace) -> dict[str, str]:
    """Return the variables of the flags: files first, so that ``-e`` wins; a name alone is taken
    from this process, if it is there.
    """
    lines = [line for path in found.env_file for line in _lines(path)]
    env: dict[str, str] = {}
    for line in [*lines, *found.env]:
        name, equals, value = line.partition("=")
        if not name:
            raise SandboxError(
                f"--env {line!r}: a variable needs a name; write NAME=VALUE, or NAME alone for "
                "this process's value."
            )
        if equals:
            env[name] = value
        elif name in os.environ:
            env[name] = os.environ[name]
    return env


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.rstrip("\r\n").lstrip() for line in file]
    except OSError as error:
        raise SandboxError(
            f"--env-file {path}: {error.strerror}. Name a file of NAME=VALUE lines that can be "
            "read."
        ) from error
    return [line for line in lines if line and not line.startswith("#")]


def add_terminal(parser: argparse.ArgumentParser) -> None:
    """Add the two flags of standard input and terminal."""
    parser.add_argument(
        "-i",
        "--interactive",
        action="store_true",
        help="let the command read this process's standard input",
    )
    parser.add_argument(
        "-t", "--tty", action="store_true", help="give the command a terminal of its own"
    )
    parser.add_argument(
        "--sig-proxy",
        type=_boolean,
        default=True,
        metavar="true|false",
        help="pass signals on to the command (default: true)",
    )


def _boolean(text: str) -> bool:
    try:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    except KeyError:
        raise ValueError(text) from None


def add_command(parser: argparse.ArgumentParser) -> None:
    """Add the command, which takes all words that are left, options too."""
    parser.add_argument(
        "command",
        metavar="COMMAND",
        nargs=argparse.REMAINDER,
        help="what to run, with its arguments",
    )


def words(found: argparse.Namespace) -> list[str]:
    """Return the command. Raises :class:`SandboxError` where there is none."""
    if not found.command:
        raise SandboxError("there is no command. Write it last, such as `sh`.")
    return list(found.command)
