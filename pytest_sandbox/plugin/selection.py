"""The decision which tests run inside a container, and with which settings.

A test that uses the fixture ``container`` runs in pytest's own process. Any other runs inside if
its nearest mark is ``container``, or if it has no mark and all tests should (``--sandbox``). pytest
calls this module at collection. It stores the decision on the items (stash.py), and registers
protocol.py if a test runs inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox import supported
from pytest_sandbox.errors import SandboxError, SettingsError, UnsupportedError
from pytest_sandbox.plugin import fresh, jobs_option, scopes
from pytest_sandbox.plugin.options import (
    check_scope,
    read_scope,
    read_settings,
    wants_fresh,
    wants_sandbox,
)
from pytest_sandbox.plugin.stash import FRESH, INSIDE, OUTSIDE, SETTINGS, SHARING

if TYPE_CHECKING:
    from pytest_sandbox.settings.settings import Settings

__all__ = ["pytest_collection_modifyitems", "pytest_testnodedown", "settings_of"]

#: The key under which an xdist worker returns a usage error to its controller.
_USAGE_ERROR = "sandbox_usage_error"
_MARKS = {"container", "no_sandbox"}
#: Keys of marks that are settings of tests, not of containers.
_OF_TESTS = ("scope", "fresh")
#: Settings that name something which the host or the image may not have.
_CHECKED_ON_HOST = {
    "image",
    "volumes",
    "devices",
    "gpus",
    "user",
    "cpuset",
    "device_read_bps",
    "device_write_bps",
    "device_read_iops",
    "device_write_iops",
}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Decide for each test, and reject invalid settings before any test runs."""
    if config.stash.get(FRESH, False):
        return  # fresh_plugin.py has got the decisions of the parent
    try:
        _decide(config, items)
    except pytest.UsageError as error:
        if not hasattr(config, "workerinput"):
            raise
        items.clear()  # the controller reports the error once, for all workers
        config.workeroutput[_USAGE_ERROR] = str(error)  # type: ignore[attr-defined]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Raise in xdist's controller the usage error of a worker."""
    error = getattr(node, "workeroutput", {}).get(_USAGE_ERROR)
    if error is not None:
        raise pytest.UsageError(error)
    if getattr(node, "workeroutput", None):
        from pytest_sandbox.plugin import repeated_imports, unkept_files

        for module in (repeated_imports, unkept_files):
            module.add_figures_of_worker(node.config, node.workeroutput)


def _decide(config: pytest.Config, items: list[pytest.Item]) -> None:
    all_inside = wants_sandbox(config)
    reader = _SettingsReader(config)
    checked: set[pytest.Collector] = set()
    outside = 0
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        marks = [mark.name for mark in _marks(item)]
        if _MARKS.issubset(marks):
            _reject_contradiction(item, checked)
        holds = "container" in fixtures
        # A test that only uses container_factory needs a mark to run inside.
        default = all_inside and "container_factory" not in fixtures
        inside = not holds and (marks[0] == "container" if marks else default)
        outside += all_inside and not (holds or inside or marks)
        item.stash[INSIDE] = inside
        if holds or inside or "container" in marks:
            item.stash[SETTINGS] = reader.settings(item)
        if inside:
            item.stash[SHARING] = scopes.sharing(item, reader.scope(item), fresh=reader.fresh(item))
    config.stash[OUTSIDE] = outside
    if any(item.stash[INSIDE] for item in items):
        _register(config)
    elif items:
        jobs_option.announce_no_effect(config)


def _register(config: pytest.Config) -> None:
    """Register the plugin that runs tests inside, or rejects them on an unsupported system."""
    if supported.lacking():
        from pytest_sandbox.plugin.unsupported import NoContainers

        config.pluginmanager.register(NoContainers(), "sandbox-no-containers")
        return
    from pytest_sandbox.plugin import protocol

    if not config.pluginmanager.has_plugin(protocol.NAME):
        protocol.register(config)


# -- marks


def _marks(item: pytest.Item) -> list[pytest.Mark]:
    """Return the item's marks of this plugin, nearest first: those of a parameter before those of
    its function, those of a class before those of its bases.
    """
    return [
        mark
        for node in reversed(item.listchain())
        for mark in reversed(node.own_markers)
        if mark.name in _MARKS
    ]


def _reject_contradiction(item: pytest.Item, checked: set[pytest.Collector]) -> None:
    """Raise if one node has both marks. A nearer node may have the opposite of a farther one's."""
    for node in item.listchain():
        if node not in checked and any(names >= _MARKS for names in _mark_names(node)):
            raise pytest.UsageError(
                f"{node.nodeid}: @pytest.mark.container and @pytest.mark.no_sandbox contradict "
                "each other. Keep one of them."
            )
        if isinstance(node, pytest.Collector):
            checked.add(node)


def _mark_names(node: Any) -> Iterator[set[str]]:
    """Yield the names of a node's marks, separately for each place in the source: a class and each
    of its bases; a parameter and its function.
    """
    if isinstance(node, pytest.Class):
        for base in node.obj.__mro__:
            marks = vars(base).get("pytestmark", ())
            yield {mark.name for mark in (marks if isinstance(marks, (list, tuple)) else [marks])}
        return
    of_parameter = list(getattr(getattr(node, "callspec", None), "marks", ()))
    yield {mark.name for mark in of_parameter}
    yield {mark.name for mark in node.own_markers if not any(mark is one for one in of_parameter)}


# -- settings


class _SettingsReader:
    """The settings of each test: the command line over marks over ini settings over defaults.

    Reads the command line and the ini settings once, and equal marks once.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        # Read for the first test that needs them: a session without such tests does not pay.
        self._common: tuple[dict[str, object], dict[str, object]] | None = None
        self._scopes: tuple[str | None, str | None] | None = None
        self._by_marks: dict[tuple[int, ...], Settings] = {}

    def scope(self, item: pytest.Item) -> str:
        """Return an item's setting ``scope``. Raises :class:`pytest.UsageError`."""
        if self._scopes is None:
            self._scopes = read_scope(self._config)
        ini, option = self._scopes
        marked = _marked_scope(item)
        return option or marked or ini or "function"

    def fresh(self, item: pytest.Item) -> bool:
        """Return an item's setting ``fresh``. Raises :class:`pytest.UsageError`."""
        found = wants_fresh(self._config)
        for mark in _marks(item):
            if mark.name == "container" and "fresh" in mark.kwargs:
                found = mark.kwargs["fresh"] or bool(self._config.getoption("sandbox_fresh"))
                break
        if type(found) is not bool:
            raise pytest.UsageError(
                f"{item.nodeid}: @pytest.mark.container: fresh={found!r}: expected True or False"
            )
        if found:
            fresh.check(item, item.stash[SETTINGS])
        return found

    def settings(self, item: pytest.Item) -> Settings:
        """Return an item's settings, as changed by ``pytest_sandbox_settings``.

        Raises :class:`pytest.UsageError`.
        """
        if self._common is None:
            self._common = read_settings(self._config)
        marks = [mark for mark in _marks(item) if mark.name == "container"]
        key = tuple(map(id, marks))
        if key not in self._by_marks:
            self._by_marks[key] = _from_marks(item, marks, *self._common)
        settings = self._by_marks[key]
        changed = item.ihook.pytest_sandbox_settings(item=item, settings=settings)
        return settings if changed is None else _from_hook(item, settings, changed)


def _from_marks(
    item: pytest.Item, marks: list[pytest.Mark], ini: dict[str, object], options: dict[str, object]
) -> Settings:
    from pytest_sandbox.settings.settings import Settings

    marked: dict[str, Any] = {}
    for mark in reversed(marks):  # the nearest is last, and overrides the others
        if mark.args:
            raise pytest.UsageError(
                f"{item.nodeid}: @pytest.mark.container takes settings by name, such as "
                f"memory='512m'; found {mark.args!r}"
            )
        marked.update(mark.kwargs)
    for name in _OF_TESTS:
        marked.pop(name, None)
    with _as_usage_error(item.nodeid):
        _check_names(marked)
        settings = Settings(**{**ini, **marked, **options})
        _check_on_host(item.config, settings)
    return settings


def _check_names(marked: Mapping[str, object]) -> None:
    """Raise :class:`SettingsError` for a key that a mark cannot have."""
    from pytest_sandbox.settings.parsers import suggestion
    from pytest_sandbox.settings.settings import KEYS

    names = [*KEYS, *_OF_TESTS]
    for name in marked.keys() - KEYS.keys():
        meant = suggestion(name, names).lstrip("; ")
        accepted = f"{meant} the keys of a mark are {', '.join(names)}".strip()
        raise SettingsError(name, marked[name], accepted)


def _marked_scope(item: pytest.Item) -> str | None:
    """Return the scope that the nearest mark sets, or None."""
    marks = [one for one in _marks(item) if one.name == "container" and "scope" in one.kwargs]
    if not marks:
        return None
    scope = check_scope(f"{item.nodeid}: @pytest.mark.container", marks[0].kwargs["scope"])
    if scope != "function" and any(marks[0] is one for one in item.own_markers):
        raise pytest.UsageError(
            f"{item.nodeid}: scope={scope!r} is set on a single test. Set it on the class, or on "
            "the module by pytestmark; a single test may have scope='function'."
        )
    return scope


def _from_hook(item: pytest.Item, settings: Settings, changed: object) -> Settings:
    """Return what ``pytest_sandbox_settings`` has made of the settings: it returns other settings,
    or a dict of changes.
    """
    from pytest_sandbox.settings.settings import Settings

    where = f"{item.nodeid}: pytest_sandbox_settings"
    with _as_usage_error(where):
        if isinstance(changed, Mapping) and all(isinstance(key, str) for key in changed):
            settings = settings.replace(**changed)
        elif isinstance(changed, Settings):
            settings = changed
        else:
            raise pytest.UsageError(
                f"{where} returned {changed!r}; return settings.replace(...), a dict of changes, "
                "or None"
            )
        _check_on_host(item.config, settings)
    return settings


def _check_on_host(config: pytest.Config, settings: Settings) -> None:
    """Raise if the settings name an image, a directory, a user, a CPU or a device that is not
    there.
    """
    if not _CHECKED_ON_HOST & settings.given or supported.lacking():
        return
    from pytest_sandbox.container.validate import check

    try:
        check(settings)
    except UnsupportedError:
        if config.getini("sandbox_unsupported") != "skip":
            raise  # else the test is skipped when its container does not start


@contextmanager
def _as_usage_error(where: str) -> Iterator[None]:
    try:
        yield
    except SandboxError as error:
        raise pytest.UsageError(f"{where}: {error}") from None


def settings_of(item: pytest.Item) -> Settings:
    """Return the settings of a test's container.

    Reads them now if the test requests the fixture by getfixturevalue(), unknown at collection.
    """
    if SETTINGS not in item.stash:
        item.stash[SETTINGS] = _SettingsReader(item.config).settings(item)
    return item.stash[SETTINGS]
