"""What to say of a program that is not installed: which package or image has it.

The packages are Debian 12's; the images are those that other tools for services use, too.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

from pytest_sandbox.errors import ServiceError
from pytest_sandbox.printable import printable

if TYPE_CHECKING:
    from types import TracebackType

    from pytest_sandbox.container.handle import Handle

__all__ = ["as_service_error", "reason_for", "reason_for_shell"]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all

#: The Debian package and an image of programs that tests often start.
_KNOWN = {
    "caddy": ("caddy", "caddy:2"),
    "curl": ("curl", "curlimages/curl"),
    "etcd": ("etcd-server", "quay.io/coreos/etcd:v3.5.9"),
    "haproxy": ("haproxy", "haproxy:2.8"),
    "initdb": ("postgresql", "postgres:16"),
    "java": ("default-jre-headless", "eclipse-temurin:21-jre"),
    "mariadb": ("mariadb-client", "mariadb:10.11"),
    "mariadbd": ("mariadb-server", "mariadb:10.11"),
    "memcached": ("memcached", "memcached:1.6"),
    "mosquitto": ("mosquitto", "eclipse-mosquitto:2"),
    "mysql": ("mariadb-client", "mariadb:10.11"),
    "mysqld": ("mariadb-server", "mariadb:10.11"),
    "nats-server": ("nats-server", "nats:2"),
    "nginx": ("nginx", "nginx:1.25"),
    "node": ("nodejs", "node:20"),
    "pg_isready": ("postgresql-client", "postgres:16"),
    "postgres": ("postgresql", "postgres:16"),
    "psql": ("postgresql-client", "postgres:16"),
    "rabbitmq-server": ("rabbitmq-server", "rabbitmq:3"),
    "redis-cli": ("redis-tools", "redis:7"),
    "redis-server": ("redis-server", "redis:7"),
    "slapd": ("slapd", "bitnami/openldap:2.6"),
    "sshd": ("openssh-server", "linuxserver/openssh-server"),
    "valkey-server": ("valkey-server", "valkey/valkey:8"),
}
#: Modules that start programs, here and in a container.
_STARTERS = {subprocess.__name__, "pytest_sandbox.container.popen"}
#: How shells say that they have not found a program: dash, bash, busybox.
_NOT_FOUND_BY_SHELL = re.compile(r"(?:^|: )([^\s:]+): (?:command )?not found$", re.MULTILINE)


def reason_for(program: str, image: object = "host") -> str:
    """Say that a program is not there, and what to do; ``image`` is that of the container."""
    shown = printable(program)
    package, other = _KNOWN.get(os.path.basename(program), ("", ""))
    if image != "host":
        named = f", such as {other!r}" if other else ""
        return (
            f"the program {shown!r} is not in the image {printable(str(image))}. Use an image= "
            f"that has it{named}"
        )
    if package:
        return (
            f"the program {shown!r} is not installed. Install it (Debian: apt-get install "
            f'{package}), or use an image that has it, such as image="{other}"'
        )
    return (
        f"the program {shown!r} is not installed. Install the package that has it (Debian: "
        "apt-file search tells which), or use an image= that has it"
    )


def reason_for_shell(error: ServiceError, image: object = "host") -> str:
    """Say what a command that has ended with 127, as a shell that finds no program, has lacked."""
    found = _NOT_FOUND_BY_SHELL.findall(error.log)
    return f"{error.reason}; {reason_for(found[-1], image)}" if found else error.reason


class as_service_error:  # noqa: N801 - a context manager, named as a function
    """Raise :class:`ServiceError` for a program that cannot be started in the block.

    ``what`` is what starts it, if that is not the service itself; ``missing`` is what to say if it
    is not there (default: :func:`reason_for`). Other errors, such as that of a file which a setup
    function opens, are raised as they are.
    """

    def __init__(self, name: str, handle: Handle, *, what: str = "", missing: str = "") -> None:
        self._name, self._handle = name, handle
        self._what, self._missing = what, missing

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _kind: object, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError):
            return
        where = _raised_in(trace)
        if where in _STARTERS and error.filename is not None:
            image = "host" if where == subprocess.__name__ else self._handle.settings.image
            reason = _reason(error, self._handle, image, self._missing)
            reason = f"{self._what}: {reason}" if self._what else reason
            raise ServiceError(self._name, reason) from None


def _reason(error: OSError, handle: Handle, image: object, missing: str) -> str:
    program = os.fsdecode(error.filename)
    if program == handle.workdir:
        return f"its working directory {printable(program)!r} cannot be entered: {error.strerror}"
    if isinstance(error, PermissionError) and "/" in program:
        return f"the program {printable(program)!r} cannot be executed: {error.strerror}"
    said = missing or reason_for(program, image)
    # execvp(3): a directory of PATH that may not be searched is reported rather than the rest.
    return f"{said} (or let its user execute it)" if isinstance(error, PermissionError) else said


def _raised_in(trace: TracebackType | None) -> str:
    """Return the module that has raised an error."""
    last = ""
    while trace is not None:
        last, trace = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_next
    return last
