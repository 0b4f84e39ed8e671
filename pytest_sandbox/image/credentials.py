"""Who a registry is asked as: docker's own files and helpers, so that ``docker login`` (or
podman's) is all that anybody has to do.
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
_TOKEN_USER: Final = "<token>"  # noqa: S105 - what helpers call an identity token's user
_HELPER_SECONDS: Final = 30.0
#: A helper's name is a part of a program's name: with a path separator it would be any program.
_HELPER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_CONFIG_BYTES: Final = 4 << 20
_ANSWER_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user's name and password, or an identity token (OAuth 2) instead of both; kept out of every
    message.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an Authorization header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


def credentials_for(registry: str) -> Credentials | None:
    """Return what docker's configuration, or else podman's, knows for a registry: its own helper,
    the helper for all, or the file itself.

    The files are ``$REGISTRY_AUTH_FILE``, ``$DOCKER_CONFIG/config.json`` (or
    ``~/.docker/config.json``), and podman's ``$XDG_RUNTIME_DIR/containers/auth.json``, or
    ``/run/containers/UID/auth.json``. Raises ImageError where one, or a helper, is broken.
    """
    return next(filter(None, (_known(path, registry) for path in _files())), None)


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


def _known(path: str, registry: str) -> Credentials | None:
    config = _read(path)
    server = dict([_HUB]).get(registry, registry)
    helpers = _part(config, "credHelpers")
    helper = helpers.get(registry) or helpers.get(server) or config.get("credsStore")
    if helper:
        return _ask(helper, server, path)
    for name, entry in _part(config, "auths").items():
        is_meant = name in (registry, server) or _host(name) == registry
        if is_meant and isinstance(entry, dict):
            return _of_file(entry, name, path)
    return None


def _part(config: dict[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _read(path: str) -> dict[str, Any]:
    """Return a configuration file, {} where there is none. Raises ImageError for what is no file,
    too large, or no JSON.
    """
    try:
        data = _bytes_of(path)
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}") from error
    try:
        config = json.loads(data)
    except (ValueError, RecursionError):  # the reason could quote what stands there: a password
        raise ImageError(f"{path} is not JSON. Mend it, or run docker login again.") from None
    return config if isinstance(config, dict) else {}


def _bytes_of(path: str) -> bytes:
    # O_NONBLOCK: opening a FIFO would wait for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ImageError(f"{path} is not a regular file")
        data = file.read(_CONFIG_BYTES + 1)
    if len(data) > _CONFIG_BYTES:
        raise ImageError(f"{path} is larger than {_CONFIG_BYTES} bytes: it is no configuration")
    return data


def _host(name: str) -> str:
    """Return the host of an entry's name, which old versions of docker wrote as an address:
    https://registry.example/v1/.
    """
    return name.partition("://")[2].partition("/")[0] if "://" in name else name


def _of_file(entry: dict[str, Any], name: str, path: str) -> Credentials | None:
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
    """Refuse text that is no Unicode: JSON can write half of a surrogate pair."""
    try:
        f"{found.username}{found.password}{found.identity_token}".encode()
    except UnicodeEncodeError:
        raise ImageError(f"the login in {where} is not valid Unicode. Log in again.") from None
    return found


def _ask(helper: object, server: str, path: str) -> Credentials | None:
    """Run ``docker-credential-HELPER get`` (docker-credential-helpers' protocol)."""
    if not isinstance(helper, str) or not _HELPER.match(helper):
        raise ImageError(
            f"{path} names the credential helper {printable(helper)[:80]!r}; accepted are "
            "letters, digits, '.', '_' and '-'"
        )
    program = f"docker-credential-{helper}"
    status, output = _output_of(program, server)
    if status:
        if b"not found" in output:  # the helpers' own words for: no such entry
            return None
        # What it has printed is not repeated: it may hold the secret.
        raise ImageError(
            f"the credential helper {program} failed (exit status {status}). Run to see why: echo "
            f"{server} | {program} get"
        )
    try:
        found = json.loads(output)
        username, secret = str(found["Username"]), str(found["Secret"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ImageError(
            f"the credential helper {program} did not answer with Username and Secret"
        ) from None
    token = username == _TOKEN_USER
    return _checked(
        Credentials(identity_token=secret) if token else Credentials(username, secret), program
    )


def _output_of(program: str, server: str) -> tuple[int, bytes]:
    """Return a helper's exit status and output. Raises ImageError where it prints too much, or
    does not end within its time.
    """
    try:
        process = subprocess.Popen(
            [program, "get"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # what it has started is ended with it
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
        return _collected(process, program)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.__exit__(None, None, None)


def _collected(process: subprocess.Popen[bytes], program: str) -> tuple[int, bytes]:
    """Read a helper's output to its end, and wait for its exit status."""
    assert process.stdout
    ends = time.monotonic() + _HELPER_SECONDS
    output = b""
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    while True:
        if not poll.poll(max(0.0, ends - time.monotonic()) * 1000):
            raise ImageError(
                f"the credential helper {program} took more than {_HELPER_SECONDS:.0f} s"
            )
        data = os.read(process.stdout.fileno(), 64 << 10)
        if not data:
            break
        output += data
        if len(output) > _ANSWER_BYTES:
            raise ImageError(f"the credential helper {program} printed more than a login")
    try:
        return process.wait(max(0.1, ends - time.monotonic())), output
    except subprocess.TimeoutExpired:
        raise ImageError(
            f"the credential helper {program} took more than {_HELPER_SECONDS:.0f} s"
        ) from None
