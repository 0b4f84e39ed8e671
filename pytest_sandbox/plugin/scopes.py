"""The setting ``scope``: which tests share a container and a test process.

selection.py reads the setting at collection and stores the result of :func:`sharing` on each item.
Before a test runs, :func:`share` tells whether it may run where the one before it did.

Two tests share a test process if they are in the same class (module, ...), have the same settings
but for ``timeout``, and need the same parameters of fixtures of wider scopes. A test whose settings
differ gets a container of its own: a limit cannot apply to one test of several in a container, and
an error would make ``--sandbox-scope`` useless for suites that limit single tests.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.plugin import compat, compat_fixtures
from pytest_sandbox.plugin.stash import INDEX, INSIDE, SETTINGS, SHARING, Sharing

if TYPE_CHECKING:
    from pytest_sandbox.settings.settings import Settings

__all__ = [
    "ends_collector",
    "following",
    "index_of",
    "is_fresh",
    "is_shared",
    "lacks_fixture",
    "may_be_skipped",
    "nodes_inside",
    "note_filters",
    "scope_of",
    "set_up_for_following",
    "share",
    "sharing",
]


_ALONE = Sharing("function")
_FILTERS = pytest.StashKey[Any]()


def sharing(item: pytest.Item, scope: str, *, fresh: bool = False) -> Sharing:
    """Return what a scope means for an item. A test outside of any class has class scope alone, as
    with fixtures; outside of a package, its directory counts as one.
    """
    node: pytest.Collector | None = None
    if scope == "class":
        node = item.getparent(pytest.Class)
    elif scope == "module":
        node = item.getparent(pytest.File)  # type: ignore[type-abstract]
    elif scope == "package":
        node = item.getparent(pytest.Package)
        if node is None:
            node = item.getparent(pytest.Directory)  # type: ignore[type-abstract]
    elif scope == "session":
        node = item.session
    if node is None:
        return Sharing("function", fresh=fresh)
    if fresh:  # fixtures of wider scopes are set up inside too
        return Sharing(scope, node, fresh=True)
    return Sharing(scope, node, compat_fixtures.wider_parameters(item, scope))


def scope_of(item: pytest.Item) -> str:
    """Return the scope whose fixtures, and those of narrower scopes, are set up inside."""
    return item.stash.get(SHARING, _ALONE).scope


def is_fresh(item: pytest.Item) -> bool:
    """Tell whether the item's test process is a new interpreter."""
    return item.stash.get(SHARING, _ALONE).fresh


def lacks_fixture(item: pytest.Item) -> bool:
    """Tell whether a fixture of a wider scope is not set up that arrives by the fork."""
    return not is_fresh(item) and compat_fixtures.lacks_higher(item, scope_of(item))


def is_shared(item: pytest.Item) -> bool:
    """Tell whether an item may share its test process with others."""
    return item.stash.get(SHARING, _ALONE).node is not None


def share(one: pytest.Item, other: pytest.Item) -> bool:
    """Tell whether two tests may run in the same test process."""
    found = one.stash.get(SHARING, _ALONE)
    return (
        found.node is not None
        and other.stash.get(INSIDE, False)
        and found == other.stash.get(SHARING, None)
        and _have_same_container(one.stash[SETTINGS], other.stash[SETTINGS])
    )


def _have_same_container(one: Settings, other: Settings) -> bool:
    # Tests with equal marks have the same object (selection.py).
    return one is other or _without_timeout(one) == _without_timeout(other)


def _without_timeout(settings: Settings) -> Settings:
    return settings if settings.timeout is None else settings.replace(timeout=None)


def index_of(item: pytest.Item) -> int:
    """Return the index of an item in its session; -1 if it is not there.

    Items are numbered at the first call, and again when a plugin has changed their order.
    """
    items = item.session.items
    index = item.stash.get(INDEX, -1)
    if not (0 <= index < len(items) and items[index] is item):
        for number, one in enumerate(items):
            one.stash[INDEX] = number
        index = item.stash.get(INDEX, -1)
        if not (0 <= index < len(items) and items[index] is item):
            return -1
    return index


def following(item: pytest.Item) -> pytest.Item | None:
    """Return the item after another one if the two share a test process."""
    if not is_shared(item):
        return None
    items, index = item.session.items, index_of(item)
    if not 0 <= index < len(items) - 1:
        return None
    return items[index + 1] if share(item, items[index + 1]) else None


def note_filters(session: pytest.Session) -> None:
    """Note the filters of warnings that are in use between tests."""
    session.stash[_FILTERS] = list(warnings.filters)


def set_up_for_following(item: pytest.Item) -> None:
    """Set up the fixtures of wider scopes that later tests of the item's scope need: they arrive by
    the fork. Those of tests that may be skipped are not set up in advance.
    """
    later = following(item)
    while later is not None:
        if not may_be_skipped(later) and lacks_fixture(later):
            with warnings.catch_warnings():
                warnings.filters = list(item.session.stash[_FILTERS])  # not those of ``item``
                with compat.recorded_warnings(later):
                    compat_fixtures.set_up_in_advance(later, scope_of(later))
        later = following(later)


def ends_collector(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Tell whether an item is the last one of a class, module, ..., before another item."""
    needed = [] if nextitem is None else nextitem.listchain()
    return any(node not in needed for node in item.listchain()[:-1])


def may_be_skipped(item: pytest.Item) -> bool:
    """Tell whether a mark may skip an item."""
    return any(mark.name in {"skip", "skipif"} for mark in item.iter_markers())


def nodes_inside(item: pytest.Item) -> list[pytest.Collector]:
    """Return the collectors of an item that are set up in its test process, outermost first."""
    node = item.stash.get(SHARING, _ALONE).node
    if node is None:
        return []
    chain = item.listchain()
    return [one for one in chain[chain.index(node) : -1] if isinstance(one, pytest.Collector)]
