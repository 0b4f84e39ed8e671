"""``network``: networks for the containers of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_sandbox.cli import filters, output, times
from pytest_sandbox.cli.format import Listing, add_format
from pytest_sandbox.cli.verb import Verb
from pytest_sandbox.errors import SandboxError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from pytest_sandbox.cli.detach import Report
    from pytest_sandbox.cli.filters import Condition
    from pytest_sandbox.container.remote import RemoteContainer
    from pytest_sandbox.container.shared_network import SharedNetwork

__all__ = ["VERBS"]

_DETAILS = """\
actions:
  create [--subnet CIDR] [--label KEY[=VALUE]] NAME
  ls [-q] [--filter KEY=VALUE] [--format FORMAT]
  inspect [--format TEMPLATE] NAME...
  connect [--alias NAME] NAME CONTAINER
  disconnect NAME CONTAINER
  rm [-f] NAME...
  prune

'pytest-sandbox network ACTION --help' shows more. Containers on a network reach each other by name
and nothing else, as on an internal network of docker. A process holds each network until
`network rm`; it needs root.
"""
_SHORT_ID = 12
_LISTING = Listing(
    {
        "ID": "NETWORK ID",
        "Name": "NAME",
        "Driver": "DRIVER",
        "Scope": "SCOPE",
        "CreatedAt": "CREATED AT",
        "Internal": "INTERNAL",
        "Labels": "LABELS",
    },
    ("ID", "Name", "Driver", "Scope"),
)
_DRIVERS = {"bridge": "bridge", "host": "host", "none": "null"}
_FILTERS = ("driver", "id", "label", "name")


def _arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (add, _run, summary) in _ACTIONS.items():
        add(actions.add_parser(name, description=summary))


def _network(found: argparse.Namespace) -> int:
    return _ACTIONS[found.action][1](found)


def _name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the name of a network, or its id")


def _names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="+", help="networks, by name or id")


def _found(name: str) -> SharedNetwork:
    """Return a network. Raises :class:`SandboxError` for an unknown one."""
    from pytest_sandbox.container import shared_network

    found = shared_network.find(name)
    if found is None:
        if name in shared_network.PREDEFINED:
            raise SandboxError(f"operation is not permitted on predefined {name} network")
        raise SandboxError(f"network {name} not found. `pytest-sandbox network ls` lists them.")
    return found


# -- create


def _create_arguments(parser: argparse.ArgumentParser) -> None:
    from pytest_sandbox.cli.run import label

    parser.add_argument(
        "--subnet", metavar="CIDR", help="the containers' addresses (default: 172.30.0.0/24)"
    )
    parser.add_argument(
        "--label", action="append", default=[], type=label, metavar="KEY[=VALUE]", help="a label"
    )
    parser.add_argument(
        "-d", "--driver", choices=["bridge"], default="bridge", help="there is no other one"
    )
    parser.add_argument(
        "--internal", action="store_true", help="no effect: there is no route out of any network"
    )
    parser.add_argument("name", metavar="NAME", help="its name")


def _create(found: argparse.Namespace) -> int:
    from pytest_sandbox.cli.detach import detach

    return detach(lambda report: _hold(found, report))


def _hold(found: argparse.Namespace, report: Report) -> None:
    """Own the network, in a process that ``network rm`` ends."""
    from pytest_sandbox.cli.names import locked_names
    from pytest_sandbox.container import shared_network

    with locked_names():
        if found.name in shared_network.PREDEFINED or shared_network.find(found.name):
            raise SandboxError(f"network with name {found.name} already exists")
        holder = shared_network.NetworkHolder(found.name, found.subnet, dict(found.label))
    report.started(holder.facts.id)
    holder.serve()


# -- ls and inspect


def _ls_arguments(parser: argparse.ArgumentParser) -> None:
    add_format(parser, _LISTING.headers)
    parser.add_argument("-q", "--quiet", action="store_true", help="print ids only")
    parser.add_argument("--no-trunc", action="store_true", help="print whole ids")
    filters.add_filter(parser, _condition, "only networks with this driver, id, label or name")


def _condition(text: str) -> Condition:
    return filters.condition(text, _FILTERS)


def _ls(found: argparse.Namespace) -> int:
    from pytest_sandbox.container.shared_network import list_networks

    listed = [(_row(one, whole=found.no_trunc), one.facts.labels) for one in list_networks()]
    listed += [(_predefined(name, driver), {}) for name, driver in _DRIVERS.items()]
    rows = [one[0] for one in listed if filters.matching(one, found.filter, _TESTS)]
    if found.quiet:
        print("".join(f"{row['ID']}\n" for row in rows), end="")
    elif found.format.word == "json":
        output.print_json([{k: v for k, v in row.items() if k != "Label"} for row in rows])
    else:
        found.format.print(rows, _LISTING)
    return 0


def _row(one: SharedNetwork, *, whole: bool) -> dict[str, Any]:
    facts = one.facts
    return {
        "ID": facts.id if whole else facts.id[:_SHORT_ID],
        "Name": facts.name,
        "Driver": "bridge",
        "Scope": "local",
        "CreatedAt": times.date(facts.created),
        "Internal": "true",
        "Labels": ",".join(f"{key}={value}" for key, value in facts.labels.items()),
        "Label": lambda key: facts.labels.get(key, ""),
    }


def _predefined(name: str, driver: str) -> dict[str, Any]:
    empty = {"CreatedAt": "", "Internal": "false", "Labels": "", "Label": lambda _key: ""}
    return {"ID": name, "Name": name, "Driver": driver, "Scope": "local", **empty}


#: The test of each key, of a row and the network's labels.
_TESTS: dict[str, Callable[[tuple[dict[str, Any], dict[str, str]], str], bool]] = {
    "driver": lambda one, value: one[0]["Driver"] == value,
    "id": lambda one, value: one[0]["ID"].startswith(value),
    "label": lambda one, value: filters.has_label(one[1], value),
    "name": lambda one, value: value in one[0]["Name"],
}


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    add_format(parser, default="json", short="-f")
    _names(parser)


def _inspect(found: argparse.Namespace) -> int:
    details = [_details(_found(name)) for name in found.names]
    if found.format.word:
        output.print_json(details)
    else:
        for one in details:
            print(found.format.render(one))
    return 0


def _details(one: SharedNetwork) -> dict[str, Any]:
    """Return what ``docker network inspect`` prints, with its keys."""
    from pytest_sandbox.cli.go_template import FreeMap

    facts = one.facts
    length = facts.subnet.rpartition("/")[2]
    return {
        "Name": facts.name,
        "Id": facts.id,
        "Created": times.rfc3339(facts.created),
        "Scope": "local",
        "Driver": "bridge",
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Config": [{"Subnet": facts.subnet}]},
        "Internal": True,
        "Containers": FreeMap(
            {
                identity: {"Name": one["name"], "IPv4Address": f"{one['address']}/{length}"}
                for identity, one in one.containers().items()
            }
        ),
        "Labels": FreeMap(facts.labels),
    }


# -- connect and disconnect


def _connect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--alias", default="", metavar="NAME", help="its name there (default: the container's name)"
    )
    _name(parser)
    parser.add_argument("id", metavar="CONTAINER", help="a running container")


def _container(name: str) -> RemoteContainer:
    from pytest_sandbox.container.detached import list_running
    from pytest_sandbox.container.remote import find

    return find(name, list_running())


def _connect(found: argparse.Namespace) -> int:
    from contextlib import closing

    from pytest_sandbox.container.remote import open_handle

    network, one = _found(found.name), _container(found.id)
    _check_unconnected(one)
    with closing(open_handle(one)) as handle:
        name = found.alias or one.label or handle.hostname
        network.named(name).attach(one.id, (name,), handle.pidfd)
    return 0


def _check_unconnected(one: RemoteContainer) -> None:
    """Raise :class:`SandboxError` for a container that has a network: it can have one."""
    from pytest_sandbox.container.shared_network import list_networks

    known = next((net.name for net in list_networks() if one.id in net.containers()), None)
    has = known or (one.settings.network if one.settings.network != "none" else None)
    if has:
        remedy = f" Disconnect it first: pytest-sandbox network disconnect {has} {one.id}"
        raise SandboxError(
            f"the container {one.id} has the network {has}, and can have one only."
            f"{remedy if known else ''}"
        )


def _disconnect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f", "--force", action="store_true", help="no effect, for compatibility with docker"
    )
    _name(parser)
    parser.add_argument("id", metavar="CONTAINER", help="a container on the network")


def _disconnect(found: argparse.Namespace) -> int:
    _found(found.name).leave(_container(found.id).id)
    return 0


# -- rm and prune


def _rm_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f", "--force", action="store_true", help="no error for an unknown network"
    )
    _names(parser)


def _rm(found: argparse.Namespace) -> int:
    from pytest_sandbox.container import shared_network

    for name in found.names:
        if found.force and shared_network.find(name) is None:
            continue
        _found(name).remove()
        print(name)
    return 0


def _prune_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--force", action="store_true", help="no effect: there is no prompt")


def _prune(_found: argparse.Namespace) -> int:
    from contextlib import suppress

    from pytest_sandbox.container.shared_network import list_networks

    for one in list_networks():
        if not one.containers():
            with suppress(SandboxError):  # a container has joined it meanwhile
                one.remove()
                print(one.name)
    return 0


_ACTIONS: dict[
    str,
    tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int], str],
] = {
    "create": (_create_arguments, _create, "Create a network, and print its id"),
    "ls": (_ls_arguments, _ls, "List the networks"),
    "inspect": (_inspect_arguments, _inspect, "Print the details of networks (JSON)"),
    "connect": (_connect_arguments, _connect, "Connect a running container that has no network"),
    "disconnect": (_disconnect_arguments, _disconnect, "Disconnect a running container"),
    "rm": (_rm_arguments, _rm, "Remove networks without containers"),
    "prune": (_prune_arguments, _prune, "Remove all networks without containers"),
}

VERBS = (
    Verb(
        name="network",
        usage="ACTION [ARGUMENTS]",
        summary="Create, list, inspect and remove networks, and connect containers to them",
        details=_DETAILS,
        arguments=_arguments,
        run=_network,
    ),
)
