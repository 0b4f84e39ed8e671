"""Changes of an image's configuration in the syntax of Dockerfiles: ``commit --change``."""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["changed"]

_ACCEPTED = (
    "CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR with its value, as "
    'in a Dockerfile, such as \'ENV A=1\' or \'CMD ["sh", "-c", "true"]\''
)
_PORT = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?(/(tcp|udp|sctp))?")


def changed(config: dict[str, Any], changes: Iterable[str]) -> dict[str, Any]:
    """Return a configuration with changes. Raises :class:`SettingsError` for an invalid one."""
    made = dict(config)
    for change in changes:
        word, _, value = change.strip().partition(" ")
        try:
            _CHANGES[word.upper()](made, _some(value.strip()))
        except (KeyError, ValueError):
            raise SettingsError("change", change, _ACCEPTED) from None
    return made


def _some(text: str) -> str:
    if not text:
        raise ValueError
    return text


def _command(text: str) -> list[str]:
    """Return a command: a JSON list, or a text for the shell."""
    if not text.startswith("["):
        return ["/bin/sh", "-c", text]
    found = json.loads(text)
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ValueError
    return found


def _pairs(text: str) -> dict[str, str]:
    """Return ``NAME=VALUE ...``, with quotes as in a shell, or the old form ``NAME VALUE``."""
    items = shlex.split(text)
    name, _, value = text.partition(" ")
    if "=" not in items[0]:
        if not value:
            raise ValueError
        return {name: value.strip()}
    pairs = [item.partition("=") for item in items]
    if not all(name and equals for name, equals, _value in pairs):
        raise ValueError
    return {name: value for name, _equals, value in pairs}


def _words(text: str) -> list[str]:
    return _command(text) if text.startswith("[") else text.split()


def _set_cmd(config: dict[str, Any], text: str) -> None:
    config["Cmd"] = _command(text)


def _set_entrypoint(config: dict[str, Any], text: str) -> None:
    config["Entrypoint"] = _command(text)
    config.pop("Cmd", None)  # the image's command was one for another entry point


def _add_env(config: dict[str, Any], text: str) -> None:
    known = dict(one.partition("=")[::2] for one in config.get("Env") or ())
    config["Env"] = [f"{name}={value}" for name, value in (known | _pairs(text)).items()]


def _add_labels(config: dict[str, Any], text: str) -> None:
    config["Labels"] = {**(config.get("Labels") or {}), **_pairs(text)}


def _add_ports(config: dict[str, Any], text: str) -> None:
    ports = [one if "/" in one else f"{one}/tcp" for one in text.split()]
    if not all(_PORT.fullmatch(one) for one in ports):
        raise ValueError
    config["ExposedPorts"] = {**(config.get("ExposedPorts") or {}), **{one: {} for one in ports}}


def _add_volumes(config: dict[str, Any], text: str) -> None:
    paths = _words(text)
    if not all(path.startswith("/") for path in paths):
        raise ValueError
    config["Volumes"] = {**(config.get("Volumes") or {}), **{path: {} for path in paths}}


def _set_workdir(config: dict[str, Any], text: str) -> None:
    base = config.get("WorkingDir") or "/"
    config["WorkingDir"] = text if text.startswith("/") else f"{base.rstrip('/')}/{text}"


def _set_user(config: dict[str, Any], text: str) -> None:
    config["User"] = text


def _set_stop_signal(config: dict[str, Any], text: str) -> None:
    config["StopSignal"] = text


_CHANGES: dict[str, Callable[[dict[str, Any], str], None]] = {
    "CMD": _set_cmd,
    "ENTRYPOINT": _set_entrypoint,
    "ENV": _add_env,
    "EXPOSE": _add_ports,
    "LABEL": _add_labels,
    "STOPSIGNAL": _set_stop_signal,
    "USER": _set_user,
    "VOLUME": _add_volumes,
    "WORKDIR": _set_workdir,
}
