"""Credentials of registries, from docker's and podman's configuration files and helpers.

Formats: config.json of docker(1), containers-auth.json(5), and docker-credential-helpers.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import select
import signal
import stat
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any, Final

from pytest_sandbox.errors import ImageError
from pytest_sandbox.printable import printable

__all__ = ["Credentials", "credentials_for"]

_HUB: Final = ("docker.io", "https://index.docker.io/v1/")
_TOKEN_USER: Final = "<token>"  # noqa: S105 - the user of an identity token
_HELPER_SECONDS: Final = 30.0
#: Part of a program's name: with a slash it could be any program.
_HELPER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_CONFIG_BYTES: Final = 4 << 20
_ANSWER_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and password, or an identity token (OAuth 2); not in its repr()."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an Authorization header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


def credentials_for(registry: str) -> Credentials | None:
    """Return the credentials of a registry in docker's or podman's configuration: from its own
    helper, the default helper, or the file itself.

    The files are ``$REGISTRY_AUTH_FILE``, ``$DOCKER_CONFIG/config.json`` (or
    ``~/.docker/config.json``), and podman's ``$XDG_RUNTIME_DIR/containers/auth.json``, or
    ``/run/containers/UID/auth.json``. Raises ImageError for an invalid file or a
    failing helper.
    """
    return next(filter(None, (_lookup(path, registry) for path in _files())), None)


def _files() -> list[str]:
    given = os.environ.get("REGISTRY_AUTH_FILE")
    docker = os.path.join(
        os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker"), "config.json"
    )
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    podman = (
        f"{runtime}/containers/auth.json"
        if runtime
        else f"/run/containers/{os.geteuid()}/auth.json"
    )
    return [*filter(None, [given]), docker, podman]


def _lookup(path: str, registry: str) -> Credentials | None:
    config = _read(path)
    server = dict([_HUB]).get(registry, registry)
    helpers = _dict_in(config, "credHelpers")
    helper = helpers.get(registry) or helpers.get(server) or config.get("credsStore")
    if helper:
        return _run_helper(helper, server, path)
    for name, entry in _dict_in(config, "auths").items():
        is_match = name in (registry, server) or _host(name) == registry
        if is_match and isinstance(entry, dict):
            return _from_entry(entry, name, path)
    return None


def _dict_in(config: dict[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _read(path: str) -> dict[str, Any]:
    """Return a configuration file, {} if it does not exist. Raises ImageError if it is not a
    regular file, too large, or not JSON.
    """
    try:
        data = _bytes_of(path)
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}") from error
    try:
        config = json.loads(data)
    except (ValueError, RecursionError):  # the reason could contain a password
        raise ImageError(f"{path} is not JSON. Correct it, or run docker login again.") from None
    return config if isinstance(config, dict) else {}


def _bytes_of(path: str) -> bytes:
    # O_NONBLOCK: opening a FIFO would wait for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ImageError(f"{path} is not a regular file")
        data = file.read(_CONFIG_BYTES + 1)
    if len(data) > _CONFIG_BYTES:
        raise ImageError(f"{path} is larger than {_CONFIG_BYTES} bytes, the maximum")
    return data


def _host(name: str) -> str:
    """Return the host of an entry's name, which old versions of docker wrote as a URL:
    https://registry.example/v1/.
    """
    return name.partition("://")[2].partition("/")[0] if "://" in name else name


def _from_entry(entry: dict[str, Any], name: str, path: str) -> Credentials | None:
    if entry.get("identitytoken"):
        return _checked(Credentials(identity_token=str(entry["identitytoken"])), path)
    if not entry.get("auth"):
        if not entry.get("username"):
            return None
        found = Credentials(str(entry["username"]), str(entry.get("password", "")))
        return _checked(found, path)
    try:
        decoded = base64.b64decode(str(entry["auth"])).decode()
        username, colon, password = decoded.partition(":")
    except ValueError:  # not base64, not ASCII, or not UTF-8
        colon = ""
    if not colon:
        raise ImageError(
            f"the entry {printable(name)!r} of {path} is not base64 of USER:PASSWORD. Run docker "
            f"login {printable(name)} again."
        )
    return Credentials(username, password.rstrip("\0"))


def _checked(found: Credentials, where: str) -> Credentials:
    """Raise ImageError for lone surrogates, which JSON can contain."""
    try:
        f"{found.username}{found.password}{found.identity_token}".encode()
    except UnicodeEncodeError:
        raise ImageError(
            f"the credentials in {where} are not valid Unicode. Log in again."
        ) from None
    return found


def _run_helper(helper: object, server: str, path: str) -> Credentials | None:
    """Run ``docker-credential-HELPER get`` (docker-credential-helpers' protocol)."""
    if not isinstance(helper, str) or not _HELPER.match(helper):
        raise ImageError(
            f"{path} names the credential helper {printable(helper)[:80]!r}; accepted are "
            "letters, digits, '.', '_' and '-'"
        )
    program = f"docker-credential-{helper}"
    status, output = _output_of(program, server)
    if status:
        if b"not found" in output:  # "credentials not found in native keychain": no status for it
            return None
        # Its output is not repeated: it may contain the secret.
        raise ImageError(
            f"the credential helper {program} failed (exit status {status}). Run to see why: echo "
            f"{server} | {program} get"
        )
    try:
        found = json.loads(output)
        username, secret = str(found["Username"]), str(found["Secret"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ImageError(
            f"the credential helper {program} did not print Username and Secret"
        ) from None
    token = username == _TOKEN_USER
    return _checked(
        Credentials(identity_token=secret) if token else Credentials(username, secret), program
    )


def _output_of(program: str, server: str) -> tuple[int, bytes]:
    """Return a helper's exit status and output. Raises ImageError if it prints too much, or does
    not exit in time.
    """
    try:
        process = subprocess.Popen(
            [program, "get"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # to kill its children too
        )
    except (OSError, ValueError) as error:
        raise ImageError(
            f"docker's configuration names the credential helper {program}, which cannot be run: "
            f"{getattr(error, 'strerror', None) or error}"
        ) from error
    assert process.stdin
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(server.encode())
            process.stdin.close()
        return _read_output(process, program)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.__exit__(None, None, None)


def _read_output(process: subprocess.Popen[bytes], program: str) -> tuple[int, bytes]:
    """Read a helper's output and wait for its exit status."""
    assert process.stdout
    deadline = time.monotonic() + _HELPER_SECONDS
    output = b""
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    while True:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise ImageError(
                f"the credential helper {program} took more than {_HELPER_SECONDS:.0f} s"
            )
        data = os.read(process.stdout.fileno(), 64 << 10)
        if not data:
            break
        output += data
        if len(output) > _ANSWER_BYTES:
            raise ImageError(
                f"the credential helper {program} printed more than {_ANSWER_BYTES} bytes"
            )
    try:
        return process.wait(max(0.1, deadline - time.monotonic())), output
    except subprocess.TimeoutExpired:
        raise ImageError(
            f"the credential helper {program} took more than {_HELPER_SECONDS:.0f} s"
        ) from None
