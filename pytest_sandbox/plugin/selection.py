"""Who is inside: ask for the container and you hold it; don't ask and you are in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox import supported
from pytest_sandbox.errors import SandboxError, UnsupportedError
from pytest_sandbox.plugin.options import given, wants_sandbox

if TYPE_CHECKING:
    from pytest_sandbox.settings import Settings

__all__ = [
    "FORKED",
    "HOLDS",
    "INSIDE",
    "SETTINGS",
    "pytest_collection_modifyitems",
    "pytest_testnodedown",
    "settings_of",
]

_REFUSED = "sandbox_refused"
_OURS = {"container", "no_sandbox"}
#: Settings whose values name something that this host or the image may not have.
_NAMING = {
    "image",
    "volumes",
    "user",
    "cpuset",
    "device_read_bps",
    "device_write_bps",
    "device_read_iops",
    "device_write_iops",
}
#: Whether this process is a test's fork.
FORKED = pytest.StashKey[bool]()
#: The settings of a test's container, inside or held.
SETTINGS = pytest.StashKey["Settings"]()
#: Whether the test's body runs inside.
INSIDE = pytest.StashKey[bool]()
#: Whether the test holds a container.
HOLDS = pytest.StashKey[bool]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Decide for each test, and refuse a wrong setting before any test runs."""
    try:
        _decide(config, items)
    except pytest.UsageError as error:
        if not hasattr(config, "workerinput"):
            raise
        items.clear()  # the controller says it once, for all workers
        config.workeroutput[_REFUSED] = str(error)  # type: ignore[attr-defined]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Refuse in xdist's controller what a worker has refused."""
    refused = getattr(node, "workeroutput", {}).get(_REFUSED)
    if refused is not None:
        raise pytest.UsageError(refused)


def _decide(config: pytest.Config, items: list[pytest.Item]) -> None:
    everywhere = wants_sandbox(config)
    read = _Reader(config)
    checked: set[pytest.Collector] = set()
    for item in items:
        names = getattr(item, "fixturenames", ())
        marks = [mark.name for mark in _nearest_first(item)]
        if "no_sandbox" in marks and "container" in marks:
            _refuse_contradiction(item, checked)
        holds = "container" in names
        inside = not holds and _is_inside(
            marks, everywhere=everywhere and "container_factory" not in names
        )
        item.stash[INSIDE], item.stash[HOLDS] = inside, holds
        if holds or inside or "container" in marks:
            item.stash[SETTINGS] = read.settings(item)
    if any(item.stash[INSIDE] for item in items):
        _register(config)


def _register(config: pytest.Config) -> None:
    """Have what runs tests inside do so, or refuse to where no container can exist."""
    if supported.lacking():
        from pytest_sandbox.plugin.unsupported import NoContainers

        config.pluginmanager.register(NoContainers(INSIDE), "sandbox-no-containers")
        return
    from pytest_sandbox.plugin import protocol

    protocol.register(config)


def _nearest_first(item: pytest.Item) -> list[pytest.Mark]:
    """Return the item's marks of this plugin, those of a parameter before the function's, a class's
    before its base's.
    """
    return [
        mark
        for node in reversed(item.listchain())
        for mark in reversed(node.own_markers)
        if mark.name in _OURS
    ]


def _refuse_contradiction(item: pytest.Item, checked: set[pytest.Collector]) -> None:
    """Raise where one node asks for both; a nearer node may say the opposite of a farther one."""
    for node in item.listchain():
        if node not in checked and any(names >= _OURS for names in _levels(node)):
            raise pytest.UsageError(
                f"{node.nodeid}: @pytest.mark.container and @pytest.mark.no_sandbox contradict "
                "each other. Keep one of them."
            )
        if isinstance(node, pytest.Collector):
            checked.add(node)


def _levels(node: Any) -> Iterator[set[str]]:
    """Yield the names of the marks that a node has from one place: a class and each of its bases, a
    parameter and its function.
    """
    if isinstance(node, pytest.Class):
        for kind in node.obj.__mro__:
            marks = vars(kind).get("pytestmark", ())
            yield {mark.name for mark in (marks if isinstance(marks, (list, tuple)) else [marks])}
        return
    of_parameter = list(getattr(getattr(node, "callspec", None), "marks", ()))
    yield {mark.name for mark in of_parameter}
    yield {mark.name for mark in node.own_markers if not any(mark is one for one in of_parameter)}


def _is_inside(marks: list[str], *, everywhere: bool) -> bool:
    """Tell by the nearest mark, and where there is none by the session's wish."""
    return everywhere if not marks else marks[0] == "container"


class _Reader:
    """Reads marks over ini over defaults, and the command line over all; the same marks once."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._common: tuple[dict[str, object], dict[str, object]] | None = None
        self._known: dict[tuple[int, ...], Settings] = {}

    def settings(self, item: pytest.Item) -> Settings:
        """Return an item's settings, as the hook has left them.

        Raises :class:`pytest.UsageError`.
        """
        if self._common is None:  # a session that asks for nothing does not pay for reading
            self._common = given(self._config)
        marks = [mark for mark in _nearest_first(item) if mark.name == "container"]
        key = tuple(map(id, marks))
        if key not in self._known:
            self._known[key] = _read(item, marks, *self._common)
        changed = item.ihook.pytest_sandbox_settings(item=item, settings=self._known[key])
        return self._known[key] if changed is None else _change(item, self._known[key], changed)


def _read(
    item: pytest.Item, marks: list[pytest.Mark], ini: dict[str, object], options: dict[str, object]
) -> Settings:
    from pytest_sandbox.settings import Settings

    marked: dict[str, Any] = {}
    for mark in reversed(marks):  # the nearest comes last, and wins
        if mark.args:
            raise pytest.UsageError(
                f"{item.nodeid}: @pytest.mark.container takes settings by name, such as "
                f"memory='512m'; found {mark.args!r}"
            )
        marked.update(mark.kwargs)
    with _naming(item.nodeid):
        settings = Settings(**{**ini, **marked, **options})
        _check(item.config, settings)
    return settings


def _change(item: pytest.Item, settings: Settings, changed: object) -> Settings:
    """Return what ``pytest_sandbox_settings`` has made of the settings: other ones, or a dict of
    changes.
    """
    from pytest_sandbox.settings import Settings

    where = f"{item.nodeid}: pytest_sandbox_settings"
    with _naming(where):
        if isinstance(changed, Mapping) and all(isinstance(key, str) for key in changed):
            settings = settings.replace(**changed)
        elif isinstance(changed, Settings):
            settings = changed
        else:
            raise pytest.UsageError(
                f"{where} returned {changed!r}; it returns settings.replace(...), a dict of "
                "changes, or None"
            )
        _check(item.config, settings)
    return settings


def _check(config: pytest.Config, settings: Settings) -> None:
    """Raise for what the settings name and this host does not have: an image, a directory, a user,
    a CPU, a device.
    """
    if not _NAMING & settings.given or supported.lacking():
        return
    from pytest_sandbox.container.validate import check

    try:
        check(settings)
    except UnsupportedError:
        if config.getini("sandbox_unsupported") != "skip":
            raise  # else the test is skipped when its container cannot start


@contextmanager
def _naming(where: str) -> Iterator[None]:
    try:
        yield
    except SandboxError as error:
        raise pytest.UsageError(f"{where}: {error}") from None


def settings_of(item: pytest.Item) -> Settings:
    """Return the settings of a test's container, also of one that nobody knew to want one when it
    was collected.
    """
    if SETTINGS not in item.stash:
        item.stash[SETTINGS] = _Reader(item.config).settings(item)
    return item.stash[SETTINGS]
