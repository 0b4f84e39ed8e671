"""Every private name of pytest, pluggy and execnet that this plugin uses, and why there is no
public one.

- ``item._request``: setting up an item's fixtures of higher scopes before its own setup runs has no
  public call.
- ``SubRequest``, ``_request._fixture_defs``: a fixture that overrides one of its own name is what
  asks for that, and there is no other way to it.
- ``item._fixtureinfo``, ``callspec._arg2scope``, ``_pytest.scope``: which of an item's fixtures
  have a scope above function, also where a parametrisation gives the scope.
- ``item.session._setupstate``: a fork must forget the finalizers of nodes above its item, or each
  test would end the session's fixtures.
- ``HookCaller._hookimpls``: in a fork, reports and warnings go to the parent and to nobody else.
- ``_pytest.warnings.catch_warnings_for_item``: records a test's warnings under all filters that
  pytest applies.
- ``capturemanager._global_capturing``: a fork needs capture files of its own, or it would share the
  parent's offsets and contents.
- ``_pytest.junitxml.xml_key``: what ``record_testsuite_property`` and ``record_xml_attribute``
  write has no other way out of a fork.
- ``_pytest.subtests.failed_subtests_key``: pytest counts failed subtests there, and turns the
  report of their test by it.
- ``SubtestReport.context.kwargs`` is set against its frozen class, since reading it from JSON
  changes it.
- ``config._tmp_path_factory``: the session's temporary directory has to be in an image before a
  test asks for it.
- ``config._inicfg``: in ``[tool.pytest]`` a setting has a native type, and no declared type lets a
  number and a text both pass.
- ``Coverage._inorout``: whether the session measures a file has no public answer.
- ``gateway._io`` of execnet: a test must not be able to write into the stream between an xdist
  worker and its controller.
"""

from __future__ import annotations

import os
from contextlib import nullcontext, suppress
from itertools import takewhile
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.compat import NOTSET
from _pytest.fixtures import SubRequest
from _pytest.scope import Scope
from _pytest.warnings import catch_warnings_for_item

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

__all__ = [
    "Finalizers",
    "Listeners",
    "add_failed_subtests",
    "base_temporary",
    "captured_files",
    "close_worker_streams",
    "failed_subtests",
    "host_outputs",
    "ini_value",
    "is_at_terminal",
    "is_measured",
    "junit_xml",
    "recorded_warnings",
    "restore_subtest",
    "set_up_higher",
    "tear_down_item",
]


def _higher_fixtures(item: Any) -> Iterator[tuple[str, list[Any]]]:
    """Yield the names of the item's fixtures of higher scopes, each with those of function scope
    that override it and ask for it, topmost first.
    """
    info = getattr(item, "_fixtureinfo", None)
    if info is None:
        return
    scopes = getattr(
        getattr(item, "callspec", None), "_arg2scope", {}
    )  # a parametrisation's scope is that of all of a name
    for name in info.names_closure:
        definitions = info.name2fixturedefs.get(name) or ()
        above = (
            []
            if name in scopes
            else list(takewhile(_takes_what_it_overrides, reversed(definitions)))
        )
        if (
            len(above) < len(definitions)
            and (scopes.get(name) or definitions[-1 - len(above)]._scope) > Scope.Function
        ):
            yield name, above
    if hasattr(item, "dtest"):
        yield "doctest_namespace", []  # a doctest asks for it without naming it


def _takes_what_it_overrides(definition: Any) -> bool:
    return definition._scope is Scope.Function and definition.argname in definition.argnames


def set_up_higher(item: Any) -> None:
    """Set up the item's fixtures of higher scopes in this process."""
    for name, above in _higher_fixtures(item):
        request = item._request
        for definition in above:
            request = SubRequest(request, Scope.Function, NOTSET, 0, definition, _ispytest=True)
        request.getfixturevalue(name)
        if above:
            del item._request._fixture_defs[
                name
            ]  # what the item has by that name is the fork's to make


class Finalizers:
    """Those of all nodes but an item, which its fork leaves to the parent; taken apart, they would
    cost it pages.
    """

    def __init__(self, item: pytest.Item) -> None:
        self._stack = item.session._setupstate.stack
        self._kept = {node: value for node, value in self._stack.items() if node is not item}
        self._none: dict[Any, Any] = {
            node: ([], error) for node, (_finalizers, error) in self._kept.items()
        }

    def forget(self) -> None:
        """Leave them to the parent."""
        self._stack.update(self._none)


def tear_down_item(item: pytest.Item) -> None:
    """Run what the item and its fixtures have to tear down, where its own teardown phase does not
    come any more.
    """
    with suppress(Exception):
        item.session._setupstate.teardown_exact(None)


def ini_value(config: Any, name: str) -> object:
    """Return an ini setting as it was written: text, or what the TOML file has."""
    try:
        return config.getini(name)
    except (TypeError, pytest.UsageError):
        found = config._inicfg[name]
        return getattr(found, "value", found)


class Listeners:
    """Those of a hook that are to hear it in a fork, which keeps the others from it, and does not
    take them apart either.
    """

    def __init__(self, config: pytest.Config, hook: str, listeners: tuple[object, ...]) -> None:
        self._hook = getattr(config.hook, hook)
        self._kept = self._hook._hookimpls
        self._ours = [
            one for one in self._kept if any(one.plugin is listener for listener in listeners)
        ]

    def take_over(self) -> None:
        """Keep every other plugin from hearing the hook, for good."""
        self._hook._hookimpls = self._ours


def recorded_warnings(item: pytest.Item) -> AbstractContextManager[None]:
    """Record warnings as pytest does around a test, and announce them at the end; do nothing where
    that is switched off.
    """
    if not item.config.pluginmanager.has_plugin("warnings"):
        return nullcontext()
    return catch_warnings_for_item(config=item.config, ihook=item.ihook, when="runtest", item=item)


def base_temporary(config: Any) -> str:
    """Return the directory below which ``tmp_path`` and its like are; it is made where it is not
    there.
    """
    factory = getattr(config, "_tmp_path_factory", None)
    return "" if factory is None else str(factory.getbasetemp())


def captured_files(config: pytest.Config) -> list[tuple[str, int, int]]:
    """Return stream, file and target descriptor of each stream that is captured by descriptor."""
    manager = config.pluginmanager.getplugin("capturemanager")
    capturing = getattr(manager, "_global_capturing", None)
    found = []
    for name, attribute in (("stdout", "out"), ("stderr", "err")):
        stream: Any = getattr(capturing, attribute, None)
        if hasattr(stream, "targetfd_save"):
            found.append((name, stream.tmpfile.fileno(), stream.targetfd))
    return found


def host_outputs(config: pytest.Config) -> list[int]:
    """Return this process's own standard output and error, also while they are captured."""
    capturing = getattr(config.pluginmanager.getplugin("capturemanager"), "_global_capturing", None)
    return [
        getattr(getattr(capturing, name, None), "targetfd_save", fd)
        for name, fd in (("out", 1), ("err", 2))
    ]


def is_at_terminal(config: pytest.Config) -> bool:
    """Tell whether this process's own standard input and output are terminals, also while they are
    captured.
    """
    capturing = getattr(config.pluginmanager.getplugin("capturemanager"), "_global_capturing", None)
    found = [
        getattr(getattr(capturing, name, None), "targetfd_save", fd)
        for name, fd in (("in_", 0), ("out", 1))
    ]
    return all(os.isatty(fd) for fd in found) and not hasattr(config, "workerinput")


def is_measured(measuring: Any, file: str, module: str) -> bool:
    """Tell whether a session of coverage measures a file, the source of ``module``."""
    rules = getattr(measuring, "_inorout", None)
    if rules is None:  # it has not begun
        return True
    frame: Any = SimpleNamespace(f_globals={"__name__": module})
    return rules.check_include_omit_etc(file, frame) is None


def junit_xml(config: pytest.Config) -> Any:
    """Return the object that writes junit XML in this process, or None."""
    from _pytest.junitxml import xml_key

    return config.stash.get(xml_key, None)


def failed_subtests(item: Any) -> int:
    """Return how many subtests of the item pytest has counted as failed; 0 below pytest 9, which
    counts reports only.
    """
    counts = _failed_subtests(item)
    return 0 if counts is None else counts[getattr(item, "id", item.nodeid)]


def add_failed_subtests(item: Any, count: int) -> None:
    """Count subtests of the item that have failed in a fork."""
    counts = _failed_subtests(item)
    if counts is not None and count:
        counts[getattr(item, "id", item.nodeid)] += count


def restore_subtest(report: Any, data: dict[str, Any]) -> None:
    """Give a subtest's report its arguments as they were: reading them, pytest takes the repr of
    what is a repr already.
    """
    context = getattr(report, "context", None)
    arguments = data.get("_subtest.context", {}).get("kwargs")
    if context is not None and arguments:
        object.__setattr__(context, "kwargs", arguments)


def _failed_subtests(item: Any) -> Any:
    try:
        from _pytest.subtests import failed_subtests_key
    except ImportError:
        return None
    return item.config.stash.get(failed_subtests_key, None)


def close_worker_streams(config: pytest.Config) -> None:
    """Cut, in a fork of an xdist worker, the descriptors on which the worker speaks with its
    controller.
    """
    if not hasattr(config, "workerinput"):
        return
    interactors = (
        one
        for one in config.pluginmanager.get_plugins()
        if type(one).__name__ == "WorkerInteractor"
    )
    io = next(interactors).channel.gateway._io
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for stream in (io.infile, io.outfile):
        os.dup2(null, stream.fileno(), inheritable=False)
    os.close(null)
