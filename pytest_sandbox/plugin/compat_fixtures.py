"""The private names of pytest's fixtures, and of what it has set up, that this plugin uses.

As in compat.py, each use has the reason why no public name serves.
"""

from __future__ import annotations

import sys
import unittest
from contextlib import suppress
from itertools import takewhile
from types import CodeType
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.compat import NOTSET
from _pytest.fixtures import SubRequest, get_scope_node, get_scope_package
from _pytest.scope import Scope

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "HigherFixtures",
    "OuterFinalizers",
    "fixture_functions",
    "keep_collectors_of",
    "lacks_higher",
    "leave_nodes",
    "nodes_not_set_up",
    "release_request",
    "set_up_higher",
    "set_up_in_advance",
    "set_up_inside",
    "tear_down_before",
    "tear_down_from",
    "tear_down_item",
    "tear_down_to",
    "wider_parameters",
]


def set_up_higher(item: Any, scope: str) -> None:
    """Set up the item's fixtures of scopes above ``scope`` in this process.

    ``item._request``: pytest sets up an item's fixtures in its own setup, all scopes together.

    ``SubRequest`` and ``_fixture_defs``: a function-scoped fixture may override a higher one and
    request it by the same name. Only a request made for the overriding fixture finds the one below
    it. The value that this caches on the item is removed, because the test process has to set up
    the overriding fixtures.
    """
    for name, overriding, _definition in _higher_fixtures(item, Scope(scope)):
        _set_up_fixture(item, name, overriding)


def set_up_in_advance(item: Any, scope: str) -> None:
    """Set up the fixtures of scopes above ``scope`` of an item whose turn comes later.

    pytest keeps the exception of a fixture that fails or skips, and raises it at its turn.

    ``session._setupstate``: pytest takes the request of an item that is not being set up for one
    during its teardown.
    """
    stack = item.session._setupstate.stack
    stack[item] = ([], None)
    try:
        for name, overriding, _definition in _higher_fixtures(item, Scope(scope)):
            try:
                _set_up_fixture(item, name, overriding)
            except pytest.exit.Exception:
                raise
            except (Exception, pytest.skip.Exception, pytest.fail.Exception):  # noqa: S112, BLE001
                continue
    finally:
        del stack[item]


def _set_up_fixture(item: Any, name: str, overriding: list[Any]) -> None:
    request = item._request
    for definition in overriding:
        scope = definition._scope
        request = SubRequest(request, scope, NOTSET, 0, definition, _ispytest=True)
    request.getfixturevalue(name)
    if overriding:
        del item._request._fixture_defs[name]


def lacks_higher(item: Any, scope: str) -> bool:
    """Tell whether a fixture of the item, of a scope above ``scope``, is not set up.

    ``fixturedef.cached_result``: no public name tells.
    """
    return any(
        definition.cached_result is None
        for _name, _overriding, definition in _higher_fixtures(item, Scope(scope))
    )


def wider_parameters(item: Any, scope: str) -> tuple[tuple[str, int], ...]:
    """Return name and index of the item's parameters of scopes above ``scope``.

    ``callspec._arg2scope``: the scope of a parameter has no public name.
    """
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return ()
    return tuple(
        (name, index)
        for name, index in callspec.indices.items()
        if callspec._arg2scope[name] > Scope(scope)
    )


def _higher_fixtures(item: Any, limit: Scope) -> Iterator[tuple[str, list[Any], Any]]:
    """Yield the name of each fixture of a scope above ``limit``, the fixtures of narrower scopes
    that override and request it, nearest to the test first, and its definition.

    ``item._fixtureinfo``, ``fixturedef._scope``: a fixture's definition is public only once it is
    set up. ``callspec._arg2scope``: a parametrization with ``scope=`` changes the scope of all
    fixtures of a name.
    """
    info = getattr(item, "_fixtureinfo", None)
    if info is None:
        return
    scopes = getattr(getattr(item, "callspec", None), "_arg2scope", {})
    for name, definitions in _definitions(item, info):
        overriding: list[Any] = []
        if name not in scopes:
            overriding = list(
                takewhile(lambda one: _requests_overridden(one, limit), reversed(definitions))
            )
        if len(overriding) == len(definitions):
            continue
        definition = definitions[-1 - len(overriding)]
        if (scopes.get(name) or definition._scope) > limit:
            yield name, overriding, definition


def _definitions(item: Any, info: Any) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield the name of each fixture of an item, and its definitions, the nearest last.

    ``session._fixturemanager``: a doctest requests one fixture without naming it.
    """
    for name in info.names_closure:
        yield name, info.name2fixturedefs.get(name) or ()
    name = "doctest_namespace"
    if hasattr(item, "dtest") and name not in info.names_closure:
        yield name, item.session._fixturemanager.getfixturedefs(name, item) or ()


def _requests_overridden(definition: Any, limit: Scope) -> bool:
    return definition._scope <= limit and definition.argname in definition.argnames


def fixture_functions(item: Any) -> list[tuple[str, int, Any]]:
    """Return name, number and function of each fixture that the item or its fixtures name; fixtures
    of one name have different numbers.

    ``item._fixtureinfo``: a fixture's definition is public only once it is set up.
    """
    info = getattr(item, "_fixtureinfo", None)
    if info is None:
        return []
    return [
        (name, number, definition.func)
        for name in info.names_closure
        for number, definition in enumerate(info.name2fixturedefs.get(name) or ())
    ]


class HigherFixtures:
    """What is set up for an item in this process, of that what its test process does not set up
    itself: fixtures of scopes above ``scope``, and its collectors but the ``inside`` ones.

    - :meth:`last_on`: whether nothing is missing, and all of it stays set up for as long as some
      nodes do.
    - ``are_of_other_parameters``: whether one has to be torn down before, as it is set up for
      another parameter.

    ``definition.cached_result``, ``session._setupstate``: no public name tells what is set up.
    ``get_scope_node``, ``get_scope_package``: with which node a fixture is torn down.
    """

    def __init__(self, item: Any, scope: str, inside: Sequence[Any]) -> None:
        self._params = getattr(getattr(item, "callspec", None), "params", {})
        self._scopes = getattr(getattr(item, "callspec", None), "_arg2scope", {})
        self._item = item
        self._needed: set[Any] = set()
        self.are_of_other_parameters = False
        stack = item.session._setupstate.stack
        self._are_set_up = not any(node in stack for node in inside)
        for node in item.listchain()[:-1]:
            if node not in inside and _has_setup(node):
                self._needed.add(node)
                self._are_set_up &= node in stack and stack[node][1] is None
        for name, _overriding, definition in _higher_fixtures(item, Scope(scope)):
            self._look_at(name, definition)

    def _look_at(self, name: str, definition: Any) -> None:
        cached = definition.cached_result
        if cached is None and _does_nothing(self._item, name):
            return
        is_wrong = cached is not None and not _is_equal(cached[1], self._params.get(name))
        self.are_of_other_parameters |= is_wrong
        self._are_set_up &= cached is not None and cached[2] is None and not is_wrong
        self._needed.add(self._node_of(name, definition))

    def _node_of(self, name: str, definition: Any) -> Any:
        """Return the node with which a fixture is torn down: outside of a class, one of class scope
        is torn down with the item.
        """
        scope = self._scopes.get(name) or definition._scope
        if scope is Scope.Package:
            return get_scope_package(self._item, definition)
        return get_scope_node(self._item, scope) or self._item

    def last_on(self, nodes: set[Any]) -> bool:
        """Tell whether everything is set up, and is torn down with one of these nodes."""
        return self._are_set_up and self._needed <= nodes

    def are_all_named(self, nodes: set[Any], *, is_complete: bool) -> bool:
        """Tell whether the item gets the same fixtures now as at its turn, whatever names it passes
        to ``getfixturevalue()``.

        ``is_complete``: nothing is set up until then. Only what is torn down with one of these
        nodes stays.
        """
        if is_complete and self._item.session._setupstate.stack.keys() <= nodes:
            return True
        stash = self._item.stash
        if _REQUESTS_BY_NAME not in stash:
            of_fixtures = (func for _name, _number, func in fixture_functions(self._item))
            functions = (getattr(self._item, "function", None), *of_fixtures)
            codes = (getattr(one, "__code__", None) for one in functions)
            stash[_REQUESTS_BY_NAME] = any(map(_names_getfixturevalue, codes))
        return not stash[_REQUESTS_BY_NAME]


def _is_equal(cached: Any, parameter: Any) -> bool:
    """Compare the parameter for which a fixture is set up, None without one, as pytest does: a
    comparison of arrays has no truth value.
    """
    try:
        return bool(cached == parameter)
    except (ValueError, RuntimeError):
        return cached is parameter


#: Whether a test or a fixture of its calls getfixturevalue(), once that is known.
_REQUESTS_BY_NAME = pytest.StashKey[bool]()


def _names_getfixturevalue(code: Any) -> bool:
    """Tell whether code, or that of a function within, has this attribute."""
    if code is None:
        return False
    inner = (one for one in code.co_consts if isinstance(one, CodeType))
    return "getfixturevalue" in code.co_names or any(map(_names_getfixturevalue, inner))


#: Whether a package has a function for its setup or teardown, once that is known.
_HAS_SETUP = pytest.StashKey[bool]()
_SETUP_NAMES = ("setUpModule", "setup_module", "tearDownModule", "teardown_module")


def _has_setup(node: Any) -> bool:
    """Tell whether a collector has anything to set up: most inherit a function that does nothing,
    and that of a package calls functions that only some have.
    """
    if type(node).setup is pytest.Collector.setup:
        return False
    if type(node) is not pytest.Package:
        return True
    if _HAS_SETUP not in node.stash:
        path = str(node.path / "__init__.py")
        modules = list(sys.modules.values())
        module = next((one for one in modules if getattr(one, "__file__", None) == path), None)
        if module is None:  # the setup imports it
            return True
        node.stash[_HAS_SETUP] = any(hasattr(module, name) for name in _SETUP_NAMES)
    return node.stash[_HAS_SETUP]


def _does_nothing(item: Any, fixture: str) -> bool:
    """Tell whether a fixture is the one that pytest makes of a class's ``setUpClass`` and
    ``tearDownClass``, and these are those of :class:`unittest.TestCase`.

    ``_unittest_setUpClass_fixture_``: the fixture has no public name.
    """
    if not fixture.startswith("_unittest_setUpClass_fixture_"):
        return False
    return all(
        getattr(getattr(item.cls, name, None), "__func__", None)
        is getattr(unittest.TestCase, name).__func__
        for name in ("setUpClass", "tearDownClass", "doClassCleanups")
    )


def keep_collectors_of(item: Any) -> None:
    """In a test process, forget the collectors that are set up for other items."""
    stack, chain = item.session._setupstate.stack, item.listchain()
    for node in [node for node in stack if node not in chain]:
        del stack[node]


class OuterFinalizers:
    """The finalizers of all nodes of the parent's, which a test process must not run: those above
    the ``inside`` ones, and of the item those of its fixtures, which outside of a class are of
    class scope. The item's first one is its own teardown.

    ``session._setupstate``: without this, each test process would tear down the session's fixtures
    when its item's teardown phase has no next item. No public call removes finalizers.

    Everything is prepared before the fork. Freeing the finalizers in the child would write to pages
    that it shares with the parent, so the object keeps a reference to them.
    """

    def __init__(self, item: pytest.Item, inside: list[pytest.Collector]) -> None:
        self._stack = item.session._setupstate.stack
        self._referenced = {
            node: value for node, value in self._stack.items() if node not in inside
        }
        self._kept: dict[Any, Any] = {
            node: (finalizers[: node is item], error)
            for node, (finalizers, error) in self._referenced.items()
        }

    def drop(self) -> None:
        """Remove them in this process."""
        self._stack.update(self._kept)


def tear_down_item(item: pytest.Item) -> None:
    """Tear down the item and its fixtures when its teardown phase does not run.

    ``session._setupstate``: ``pytest.exit()`` has ended the protocol, so no phase follows.
    """
    with suppress(Exception):
        item.session._setupstate.teardown_exact(None)


def release_request(item: Any) -> None:
    """Release the values of the item's fixtures after its teardown.

    ``item._request``, ``item.funcargs``: pytest does the same at the end of its protocol; before
    pytest 9, not if that ends by an exception.
    """
    if hasattr(item, "_request"):
        item._request, item.funcargs = False, None


def leave_nodes(session: Any, nodes: list[Any]) -> None:
    """Forget that nodes are set up; they have no finalizers to run.

    ``session._setupstate``: the nodes are set up in the test process only.
    """
    for node in nodes:
        session._setupstate.stack.pop(node, None)


def set_up_inside(item: Any, nodes: list[Any]) -> None:
    """Set up the nodes and the item in a test process, within pytest's own setup of the item.

    ``session._setupstate``: that has entered the nodes already, and records the exception of the
    item's setup after this function has raised it.
    """
    state = item.session._setupstate
    leave_nodes(item.session, [*nodes, item])
    try:
        state.setup(item)
    finally:
        state.stack.setdefault(item, ([], None))


def tear_down_from(node: Any) -> None:
    """Tear down a node and all below it in this process.

    ``session._setupstate``: pytest keeps what the next test needs, which is to be created inside.
    """
    if node in node.session._setupstate.stack:
        node.session._setupstate.teardown_exact(node.parent)


def nodes_not_set_up(item: Any) -> list[Any]:
    """Return the collectors of an item that are not set up in this process.

    ``session._setupstate``: no public name tells.
    """
    stack = item.session._setupstate.stack
    return [node for node in item.listchain()[:-1] if node not in stack]


def tear_down_to(session: Any, nextitem: Any) -> None:
    """Tear down what is set up in this process, except for what ``nextitem`` needs.

    ``session._setupstate``: the hook does it only together with an item.
    """
    session._setupstate.teardown_exact(nextitem)


#: What a teardown raises that is no :class:`Exception`.
_OUTCOMES = (pytest.fail.Exception, pytest.skip.Exception, BaseExceptionGroup)


def tear_down_before(error: BaseException, session: Any, nextitem: Any) -> None:
    """Tear down what the hook would after an item whose teardown is about to raise ``error``, a
    group; raise both if that fails too.

    ``session._setupstate``: it makes such a group itself, after the teardown of all nodes, and
    tears down no further node if the teardown of one raises it.
    """
    try:
        session._setupstate.teardown_exact(nextitem)
    except pytest.exit.Exception:
        raise
    except (*_OUTCOMES, Exception) as own:  # noqa: BLE001 - both are raised
        raise BaseExceptionGroup("errors during test teardown", [own, error]) from None
