"""Who a registry is asked as: docker's own files and helpers, so that ``docker login`` (or podman's) is all that anybody has to do."""

from __future__ import annotations

import base64
import binascii
import json
import os
import subprocess
from dataclasses import dataclass, field
from typing import Any, Final

from pytest_sandbox.errors import ImageError

__all__ = ["Credentials", "credentials_for"]

_HUB: Final = ("docker.io", "https://index.docker.io/v1/")
_TOKEN_USER: Final = "<token>"  # noqa: S105 - what helpers call an identity token's user
_HELPER_SECONDS: Final = 30


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user's name and password, or an identity token (OAuth 2) instead of both; kept out of every message."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an Authorization header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


def credentials_for(registry: str) -> Credentials | None:
    """Return what docker's configuration, or else podman's, knows for a registry: its own helper, the helper for all, or the file itself.

    The files are ``$REGISTRY_AUTH_FILE``, ``$DOCKER_CONFIG/config.json`` (or ``~/.docker/config.json``), and podman's
    ``$XDG_RUNTIME_DIR/containers/auth.json``, or ``/run/containers/UID/auth.json``. Raises ImageError where one, or a helper, is broken.
    """
    return next(filter(None, (_known(path, registry) for path in _files())), None)


def _files() -> list[str]:
    given = os.environ.get("REGISTRY_AUTH_FILE")
    docker = os.path.join(os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker"), "config.json")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    podman = f"{runtime}/containers/auth.json" if runtime else f"/run/containers/{os.geteuid()}/auth.json"
    return [*filter(None, [given]), docker, podman]


def _known(path: str, registry: str) -> Credentials | None:
    config = _read(path)
    server = dict([_HUB]).get(registry, registry)
    helper = _part(config, "credHelpers").get(registry) or _part(config, "credHelpers").get(server) or config.get("credsStore")
    if helper:
        return _ask(str(helper), server)
    for name, entry in _part(config, "auths").items():
        if (isinstance(entry, dict) and name in (registry, server)) or _host(name) == registry:
            return _of_file(entry, name, path)
    return None


def _part(config: dict[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise ImageError(f"{path} is no JSON ({error}). Mend it, or run docker login again.") from error
    return config if isinstance(config, dict) else {}


def _host(name: str) -> str:
    """Return the host of an entry's name, which old dockers wrote as an address: https://registry.example/v1/."""
    return name.partition("://")[2].partition("/")[0] if "://" in name else name


def _of_file(entry: dict[str, Any], name: str, path: str) -> Credentials | None:
    if entry.get("identitytoken"):
        return Credentials(identity_token=str(entry["identitytoken"]))
    if not entry.get("auth"):
        return Credentials(str(entry["username"]), str(entry.get("password", ""))) if entry.get("username") else None
    try:
        username, colon, password = base64.b64decode(str(entry["auth"])).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        colon = ""
    if not colon:
        raise ImageError(f"the entry {name!r} of {path} is not base64 of USER:PASSWORD. Run docker login {name} again.")
    return Credentials(username, password.rstrip("\0"))


def _ask(helper: str, server: str) -> Credentials | None:
    """Run ``docker-credential-HELPER get`` (docker-credential-helpers' protocol)."""
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run([program, "get"], input=server, capture_output=True, text=True, timeout=_HELPER_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImageError(f"docker's configuration names the credential helper {program}, which cannot be run: {error}") from error
    if done.returncode:
        if "not found" in done.stdout + done.stderr:  # the helpers' own words for: no such entry
            return None
        raise ImageError(f"the credential helper {program} failed: {(done.stdout + done.stderr).strip()[:300]}")
    try:
        found = json.loads(done.stdout)
        username, secret = str(found["Username"]), str(found["Secret"])
    except (ValueError, KeyError, TypeError) as error:
        raise ImageError(f"the credential helper {program} did not answer with Username and Secret") from error
    return Credentials(identity_token=secret) if username == _TOKEN_USER else Credentials(username, secret)
