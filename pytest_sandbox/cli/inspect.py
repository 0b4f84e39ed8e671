"""``inspect``: the details of containers and images, as docker prints them."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

from pytest_sandbox.cli import output, times
from pytest_sandbox.cli.format import add_format
from pytest_sandbox.cli.go_template import FreeMap
from pytest_sandbox.cli.verb import Verb
from pytest_sandbox.container import detached, remote
from pytest_sandbox.container.shared_network import list_networks
from pytest_sandbox.errors import SandboxError
from pytest_sandbox.settings.path_parsers import volumes

if TYPE_CHECKING:
    import argparse

    from pytest_sandbox.container.detached import Detached
    from pytest_sandbox.image.image import Image

__all__ = ["VERBS"]

_NEVER = "0001-01-01T00:00:00Z"
#: The settings of an image that has none, for templates.
_ZEROS: dict[str, Any] = {
    "User": "",
    "Env": [],
    "Cmd": [],
    "Entrypoint": [],
    "WorkingDir": "",
    "StopSignal": "",
    "ExposedPorts": FreeMap(),
    "Volumes": FreeMap(),
}


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--type",
        choices=["container", "image"],
        help="only containers, or only images (default: a container, else an image)",
    )
    add_format(parser, default="json", short="-f")
    parser.add_argument(
        "names",
        nargs="+",
        metavar="CONTAINER|IMAGE",
        help="a detached container or an image: name, id, or prefix of an id",
    )


def _inspect(found: argparse.Namespace) -> int:
    details = [_details(name, found.type) for name in found.names]
    if found.format.word:
        output.print_json(details)
    else:
        for one in details:
            print(found.format.render(_with_zeros(one)))
    return 0


def _with_zeros(details: dict[str, Any]) -> dict[str, Any]:
    """Return the details for a template: with the settings that an image lacks, as docker has."""
    config = details["Config"]
    labels = FreeMap(config.get("Labels") or {})
    return {**details, "Config": {**_ZEROS, **config, "Labels": labels}}


def _details(name: str, kind: str | None) -> dict[str, Any]:
    from pytest_sandbox.image.image import Image

    if kind != "image":
        one = detached.find(name, detached.list_detached())
        if one is not None:
            return _of_container(one)
        if kind == "container":
            raise SandboxError(f"No such container: {name}. `pytest-sandbox ps -a` lists them.")
    return _of_image(Image.get(name))


def _of_container(one: Detached) -> dict[str, Any]:
    """Return what ``docker inspect`` prints of a container, with its keys, as far as they have a
    meaning here.
    """
    facts = one.facts
    policy, _, most = facts.restart.partition(":")
    return {
        "Id": one.id,
        "Created": _time(facts.created),
        "Path": facts.command[0],
        "Args": facts.command[1:],
        "State": _state(one),
        "Image": facts.image_id or facts.image,
        "Name": f"/{one.name}" if one.name else "",
        "RestartCount": facts.restarts,
        "LogPath": "",  # as with docker's log driver "local"
        "HostConfig": {
            "AutoRemove": facts.remove,
            "LogConfig": {"Type": "local", "Config": facts.log_options},
            "Memory": facts.settings.get("memory") or 0,
            "NetworkMode": facts.network or facts.settings.get("network", "none"),
            "RestartPolicy": {"Name": policy, "MaximumRetryCount": int(most or 0)},
        },
        "Mounts": _mounts(one),
        "Config": {
            "Hostname": _hostname(one),
            "User": facts.settings.get("user") or "",
            "Tty": facts.tty,
            "OpenStdin": facts.stdin,
            "Env": [f"{name}={value}" for name, value in facts.env.items()],
            "Cmd": facts.command[len(facts.entrypoint) :],
            "Entrypoint": facts.entrypoint,
            "Image": facts.image,
            "WorkingDir": facts.settings.get("workdir") or "",
            "Labels": facts.labels,
            "StopSignal": signal.Signals(facts.stop_signal).name,
        },
        "NetworkSettings": {"Ports": _ports(one), "Networks": _networks(one)},
    }


def _hostname(one: Detached) -> str:
    """Return the host name, without aliases."""
    given = one.facts.settings.get("hostname") or one.id
    return given if isinstance(given, str) else str(given[0])


def _state(one: Detached) -> dict[str, Any]:
    facts = one.facts
    is_paused = one.is_running and any(
        other.paused for other in remote.list_containers() if other.id == one.id
    )
    status = "paused" if is_paused else facts.state
    return {
        "Status": status,
        "Running": one.is_running,
        "Paused": is_paused,
        "Restarting": status == "restarting",
        "OOMKilled": facts.oom_killed,
        "Dead": False,
        "Pid": facts.pid if one.is_running else 0,
        "ExitCode": facts.exit_code,
        "Error": facts.error,
        "StartedAt": _time(facts.started),
        "FinishedAt": _time(facts.finished),
    }


def _ports(one: Detached) -> dict[str, list[dict[str, str]]]:
    """Return the host's addresses of each published port inside; nothing of an ended container."""
    ports: dict[str, list[dict[str, str]]] = FreeMap()
    for key, host, port in one.facts.ports if one.is_running else ():
        ports.setdefault(key, []).append({"HostIp": host, "HostPort": str(port)})
    return ports


def _mounts(one: Detached) -> list[dict[str, Any]]:
    """Return the volumes."""
    return [
        {
            "Type": "bind",
            "Source": os.path.abspath(os.path.expanduser(volume.source)),
            "Destination": volume.target,
            "Mode": "ro" if volume.read_only else "",
            "RW": not volume.read_only,
        }
        for volume in volumes(one.facts.settings.get("volumes") or ())
    ]


def _networks(one: Detached) -> dict[str, dict[str, Any]]:
    """Return the network that a running container is on, by its name."""
    found: dict[str, dict[str, Any]] = FreeMap()
    for network in list_networks() if one.is_running else ():
        member = network.containers().get(one.id)
        if member is not None:
            found[network.name] = {
                "Aliases": [member["name"]],
                "NetworkID": network.facts.id,
                "IPAddress": member["address"],
                "IPPrefixLen": int(network.subnet.rpartition("/")[2]),
            }
    return found


def _time(when: float) -> str:
    """Return a time as docker prints it; its zero time for 0."""
    if not when:
        return _NEVER
    return times.rfc3339(when)


def _of_image(image: Image) -> dict[str, Any]:
    """Return what ``docker inspect`` prints of an image, with its keys and order."""
    document = image.document
    return {
        "Id": image.id,
        "RepoTags": [name for name in image.names if "@" not in name],
        "RepoDigests": list(image.repository_digests),
        "Comment": str((image.history[-1] if image.history else {}).get("comment", "")),
        "Created": document.get("created"),
        "Author": document.get("author", ""),
        "Architecture": document.get("architecture"),
        **({"Variant": document["variant"]} if document.get("variant") else {}),
        "Os": document.get("os"),
        "Size": image.size,
        "Config": image.config,
        "RootFS": {"Type": "layers", "Layers": list(image.layers)},
    }


VERBS = (
    Verb(
        name="inspect",
        usage="[--type container|image] [--format TEMPLATE] CONTAINER|IMAGE...",
        summary="Print the details of detached containers and images, as docker does (JSON)",
        arguments=_arguments,
        run=_inspect,
    ),
)
