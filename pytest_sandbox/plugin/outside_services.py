"""The services of a test process, which the parent starts and ends outside of its container.

Fixtures that are set up in a test process cannot start a service themselves: the container has
neither the rights nor the launcher. So the parent starts what a test names before the test begins:
before the fork, or, for a later test of a process that tests share, before it names the test to the
process. It tells the process the addresses; nothing comes back. A service lives as long as its
fixture: for its test, class, module, package or, in a new interpreter (``fresh=True``), until the
end of the process.
"""

from __future__ import annotations

import json
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.plugin import scopes
from pytest_sandbox.plugin.service_fixtures import (
    GIVEN,
    STARTED,
    Marked,
    are_defined,
    close_at_end,
    marked_fixtures,
    network_of,
)
from pytest_sandbox.plugin.stash import INSIDE, SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_sandbox.container.network import Network
    from pytest_sandbox.plugin.service_fixtures import RunningService
    from pytest_sandbox.settings.settings import Settings

    _Key = tuple[Marked, object]

__all__ = ["OutsideServices", "adopt", "begin_ahead", "describe", "enter", "forget"]

_SCOPES = ("function", "class", "module", "package", "session")
#: Characters of the description of all services of a test: less than a pipe holds (pipe(7)).
_MAX_DESCRIBED = 48 << 10

#: The services of function scope that were begun before the turn of the item, and on the
#: configuration the items that have some.
_BEGUN = pytest.StashKey[dict[Marked, "RunningService"]]()
_BEGUN_ITEMS = pytest.StashKey[set[pytest.Item]]()


def _wanted(item: pytest.Item) -> dict[str, Marked]:
    """Return the services whose fixtures the item's test process sets up."""
    limit = len(_SCOPES) if scopes.is_fresh(item) else _SCOPES.index(scopes.scope_of(item)) + 1
    return {key: one for key, one in marked_fixtures(item).items() if one.scope in _SCOPES[:limit]}


def _network_for(item: pytest.Item) -> Network | None:
    """Return the network on which an item, and the later ones of its test process, reach their
    services: the one that all of these name, or the one of this process; None without services.
    """
    networks: list[Any] = []  # or a string, or a tuple of destinations
    following: pytest.Item | None = item
    while following is not None:
        networks += [one.service.settings.network for one in marked_fixtures(following).values()]
        following = scopes.following(following)
    if not networks:
        return None
    created = network_of(item.config)
    is_named = isinstance(networks[0], type(created)) and len(set(map(id, networks))) == 1
    return networks[0] if is_named else created


def _network(item: pytest.Item) -> Network | None:
    """Return the network that services share with the item's container; None if its settings name
    another.
    """
    return network_of(item.config) if item.stash[SETTINGS].network == "none" else None


class OutsideServices:
    """The services of one test process, by fixture and by the node that the fixture lives for."""

    def __init__(self) -> None:
        self._running: dict[_Key, RunningService] = {}

    @staticmethod
    def settings_for(item: pytest.Item, settings: Settings) -> Settings:
        """Return the settings of the container: on the services' network if a test uses one, unless
        the settings name another.
        """
        network = _network_for(item) if settings.network == "none" else None
        return settings if network is None else settings.replace(network=network)

    def start_for(self, item: pytest.Item) -> None:
        """Start what an item's fixtures need, and end what only earlier items did.

        Raises what the start of a service raises.
        """
        if not are_defined():
            return
        wanted = {(one, _node_of(item, one.scope)) for one in _wanted(item).values()}
        chain = item.listchain()
        self._end([key for key in self._running if key[1] is item or key[1] not in chain])
        new = wanted - self._running.keys()
        with ExitStack() as opened:
            opened.callback(lambda: self._end([key for key in new if key in self._running]))
            for key in new:
                self._running[key] = _begun_or_new(item, key[0])
            for key in new:
                self._running[key].await_ready()
            opened.pop_all()
        item.stash[STARTED] = {key[0]: self._running[key] for key in wanted}

    def close(self) -> None:
        """End all."""
        self._end(list(self._running))

    def _end(self, keys: list[_Key]) -> None:
        with ExitStack() as closing:
            for key in keys:
                closing.callback(self._running.pop(key).close)


def _begun_or_new(item: pytest.Item, marked: Marked) -> RunningService:
    """Return the service that was begun for an item if it still runs, else a new one."""
    close_at_end(item.config, marked.service)
    begun = item.stash.get(_BEGUN, {}).pop(marked, None)
    if begun is not None and not begun.has_ended:
        return begun
    if begun is not None:
        begun.close()
    return marked.service.begin(_network(item))


def _node_of(item: pytest.Item, scope: str) -> object:
    """Return the node for which a fixture of a scope lives. That of a package lives until the end
    of the process: which package it belongs to depends on where it is defined.
    """
    if scope == "class":
        return item.getparent(pytest.Class) or item  # as in pytest
    if scope == "module":
        return item.getparent(pytest.Module) or item.session
    return item if scope == "function" else item.session


def forget(item: pytest.Item) -> None:
    """Forget the services of an item whose reports are complete, and with them their logs."""
    if STARTED in item.stash:
        del item.stash[STARTED]


# -- what the test process is told


def describe(item: pytest.Item) -> str:
    """Return the services that were started for an item, as one line of text; empty for none."""
    started = item.stash.get(STARTED, {})
    if not started:
        return ""
    found = {key: started[one].describe() for key, one in _wanted(item).items() if one in started}
    text = json.dumps(found) if found else ""
    if len(text) > _MAX_DESCRIBED:
        text = json.dumps({key: {**one, "logs": ""} for key, one in found.items()})
    return text


def adopt(item: pytest.Item, described: str) -> None:
    """Store the services that :func:`describe` has described on an item of the test process."""
    item.stash[STARTED] = {}
    if described:
        found: dict[str, Any] = json.loads(described)
        item.stash[STARTED] = {
            one: one.service.restored(found[key])
            for key, one in marked_fixtures(item).items()
            if key in found
        }


def enter(item: pytest.Item) -> None:
    """Have the fixtures of the test process return the services of an item."""
    item.config.stash[GIVEN] = item.stash.get(STARTED, {})


# -- services that are begun before a test's turn


def begin_ahead(config: pytest.Config, items: Iterable[pytest.Item], *, every: bool) -> None:
    """Begin the services of function scope of items whose turn comes later; end those of other
    items. Without ``every``, only services with ``ahead``.

    An error is that of the item, which tries again.
    """
    if not are_defined():
        return
    later = [one for one in items if one.stash.get(INSIDE, False)]
    if _BEGUN_ITEMS not in config.stash:
        config.stash[_BEGUN_ITEMS] = set()
        config.add_cleanup(lambda: _end_begun(config, list(known)))
    known = config.stash[_BEGUN_ITEMS]
    _end_begun(config, known.difference(later))
    for item in later:
        if item not in known and not scopes.may_be_skipped(item):
            _begin(item, every=every)


def _begin(item: pytest.Item, *, every: bool) -> None:
    wanted = [one for one in _wanted(item).values() if one.scope == "function"]
    for one in wanted:
        if every or one.service.is_ahead:
            item.config.stash[_BEGUN_ITEMS].add(item)
            with suppress(SandboxError, OSError):
                close_at_end(item.config, one.service)
                begun = item.stash.setdefault(_BEGUN, {})
                begun[one] = one.service.begin(_network(item))


def _end_begun(config: pytest.Config, items: Iterable[pytest.Item]) -> None:
    known = config.stash[_BEGUN_ITEMS]
    with ExitStack() as closing:
        for item in list(items):
            known.discard(item)
            for running in item.stash.get(_BEGUN, {}).values():
                closing.callback(running.close)
            item.stash[_BEGUN] = {}
