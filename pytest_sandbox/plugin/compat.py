"""Every private name of pytest and pluggy that this plugin uses, and why there is no public one.

- ``item._request``, ``_initrequest``: setting up an item's fixtures of higher scopes before its own setup runs has no public call.
- ``item.session._setupstate``: a fork must forget the finalizers of nodes above its item, or each test would end the session's fixtures.
- ``_pytest.runner.call_and_report``: runs one phase with the hooks around it; ``runtestprotocol`` would log its report too.
- ``item._report_sections``: what was captured before a crash is in no report.
- ``HookCaller._remove_plugin``: in the fork, reports go to the parent and to nobody else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from _pytest.runner import call_and_report
from _pytest.scope import Scope

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

__all__ = [
    "begin_request",
    "end_request",
    "forget_finalizers",
    "higher_fixtures",
    "run_phase",
    "set_up_higher",
    "take_captured",
    "take_over",
]


def begin_request(item: Any) -> None:
    """Give the item a fresh fixture request where it has none."""
    if hasattr(item, "_request") and not item._request:
        item._initrequest()


def end_request(item: Any) -> None:
    """Drop the item's request and values, as the own protocol of pytest does at its end."""
    if hasattr(item, "_request"):
        item._request = False
        item.funcargs = None


def higher_fixtures(item: Any) -> Iterator[str]:
    """Yield the names of an item's fixtures whose scope is above function."""
    info = getattr(item, "_fixtureinfo", None)
    if info is None:
        return
    callspec = getattr(item, "callspec", None)
    scopes = getattr(callspec, "_arg2scope", {})
    for name in item.fixturenames:
        definitions = info.name2fixturedefs.get(name)
        scope = scopes.get(name) or (definitions[-1]._scope if definitions else Scope.Function)
        if definitions and scope > Scope.Function:
            yield name


def set_up_higher(item: Any) -> None:
    """Set up the item's fixtures of higher scopes in this process."""
    for name in higher_fixtures(item):
        item._request.getfixturevalue(name)


def forget_finalizers(item: pytest.Item) -> None:
    """Leave, in a fork, the finalizers of all nodes but the item to the parent."""
    for node, (finalizers, _error) in item.session._setupstate.stack.items():
        if node is not item:
            finalizers.clear()


def run_phase(item: pytest.Item, when: Any, **more: Any) -> pytest.TestReport:
    """Run one phase of a test and return its report, which nobody has seen yet."""
    return call_and_report(item, when, log=False, **more)


def take_captured(item: Any) -> list[tuple[str, str]]:
    """Return what the test has printed until now as a report's sections, and forget it."""
    printed = [(f"Captured {key} {when}", content) for when, key, content in item._report_sections]
    item._report_sections.clear()
    return printed


def take_over(config: pytest.Config, hook: str) -> None:
    """Keep every plugin but those registered from here on from hearing ``hook``."""
    caller = getattr(config.hook, hook)
    for implementation in list(caller.get_hookimpls()):
        caller._remove_plugin(implementation.plugin)
