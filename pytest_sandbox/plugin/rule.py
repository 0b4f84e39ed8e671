"""Who is inside: ask for the container and you hold it; don't ask and you are in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.plugin.options import given, wants_sandbox

if TYPE_CHECKING:
    from pytest_sandbox.settings import Settings

__all__ = ["FORKED", "HOLDS", "INSIDE", "SETTINGS", "pytest_collection_modifyitems", "pytest_testnodedown", "settings_of"]

_REFUSED = "sandbox_refused"
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
    for item in items:
        names = getattr(item, "fixturenames", ())
        marks = [mark.name for mark in item.iter_markers() if mark.name in {"container", "no_sandbox"}]
        holds = "container" in names
        inside = not holds and _is_inside(marks, everywhere=everywhere and "container_factory" not in names)
        item.stash[INSIDE], item.stash[HOLDS] = inside, holds
        if holds or inside or "container" in marks:
            item.stash[SETTINGS] = read.settings(item)
    if any(item.stash[INSIDE] for item in items):
        from pytest_sandbox.plugin import inside as inside_

        inside_.register(config)


def _is_inside(marks: list[str], *, everywhere: bool) -> bool:
    """Tell by the nearest mark, and where there is none by the session's wish; ``no_sandbox`` wins on the same node."""
    return everywhere if not marks else marks[0] == "container"


class _Reader:
    """Reads marks over ini over defaults, and the command line over all; the same marks once."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._common: tuple[dict[str, object], dict[str, object]] | None = None
        self._known: dict[tuple[int, ...], Settings] = {}

    def settings(self, item: pytest.Item) -> Settings:
        """Return an item's settings, as the hook has left them. Raises :class:`pytest.UsageError`."""
        if self._common is None:  # a session that asks for nothing does not pay for reading
            self._common = given(self._config)
        marks = list(item.iter_markers("container"))
        key = tuple(map(id, marks))
        if key not in self._known:
            self._known[key] = _read(item, marks, *self._common)
        changed: Settings | None = item.ihook.pytest_sandbox_settings(item=item, settings=self._known[key])
        return self._known[key] if changed is None else changed


def _read(item: pytest.Item, marks: list[pytest.Mark], ini: dict[str, object], options: dict[str, object]) -> Settings:
    from pytest_sandbox.settings import Settings

    marked: dict[str, Any] = {}
    for mark in reversed(marks):  # the nearest comes last, and wins
        if mark.args:
            raise pytest.UsageError(
                f"{item.nodeid}: @pytest.mark.container takes settings by name, such as memory='512m'; found {mark.args!r}"
            )
        marked.update(mark.kwargs)
    try:
        settings = Settings(**{**ini, **marked, **options})
        if {"image", "volumes"} & settings.given:
            from pytest_sandbox.container import Container

            Container.check(settings)
    except SandboxError as error:
        raise pytest.UsageError(f"{item.nodeid}: {error}") from None
    return settings


def settings_of(item: pytest.Item) -> Settings:
    """Return the settings of a test's container, also of one that nobody knew to want one when it was collected."""
    if SETTINGS not in item.stash:
        item.stash[SETTINGS] = _Reader(item.config).settings(item)
    return item.stash[SETTINGS]
