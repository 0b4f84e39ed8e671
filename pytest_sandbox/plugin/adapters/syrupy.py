"""syrupy: which snapshots were used, and the new content of snapshots that share a file.

syrupy writes such files and deletes unused snapshots at the end of the session, from what each
assertion has recorded. Snapshots with a file of their own are written at once, inside.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from pytest_sandbox.plugin import artifacts
from pytest_sandbox.plugin.stash import INSIDE

__all__ = ["register"]

_OWN_EXTENSIONS = {
    f"syrupy.extensions.{name}" for name in ("amber", "image", "json", "single_file")
}
_RESULT = ("snapshot_location", "snapshot_name", "created", "updated", "success")


def register(config: pytest.Config) -> None:
    """Register the adapter."""
    config.pluginmanager.register(_Adapter(config), f"sandbox-{__name__}")
    options = config.option
    if options.update_snapshots or getattr(options, "update_new_snapshots_only", False):
        name = getattr(options, "snapshot_dirname", "__snapshots__")
        artifacts.add_pattern(config, f"**/{name}/**")


class _Adapter:
    def __init__(self, config: pytest.Config) -> None:
        self._config: Any = config
        self._assertions = importlib.import_module("syrupy.assertion")
        self._base: Any = importlib.import_module("syrupy.extensions.base").AbstractSyrupyExtension
        self._location = importlib.import_module("syrupy.location").PyTestLocation
        self._status = importlib.import_module("syrupy.session").ItemStatus
        self._complete: set[str] = set()
        self._inside: set[str] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Remember the tests that run inside."""
        self._inside = {item.nodeid for item in session.items if item.stash.get(INSIDE, False)}

    def pytest_sandbox_carry(self, item: pytest.Item) -> Any:
        """Return the assertions of the test, and the snapshots that it wants to write."""
        session = self._config._syrupy
        # The parent has those of tests outside; their locations name other items.
        own = [one for one in session._assertions if one.test_location.item is item]
        writes = [
            [_name(key[0]), location, index, data]
            for key, queued in session._queued_snapshot_writes.items()
            for location, (index, data) in _of_item(item, key[1], queued)
        ]
        return {"assertions": [_recorded(one) for one in own], "writes": writes}

    def pytest_sandbox_carried(self, item: pytest.Item, data: Any) -> None:
        """Repeat the assertions and the requests to write in the parent."""
        for extension, results in data["assertions"]:
            self._repeat(item, self._extension(extension), results)
        for extension, location, index, content in data["writes"]:
            self._write(item, self._extension(extension), location, index, content)
        self._complete.add(item.nodeid)

    def _extension(self, name: Any) -> Any:
        """Return the class of an extension, by the name that the test process has sent."""
        if name[0] in _OWN_EXTENSIONS:  # a test may import it when it runs
            importlib.import_module(name[0])
        pending = [self._base]
        while pending:
            found = pending.pop()
            if _name(found) == name:
                return found
            pending += type.__subclasses__(found)
        raise ValueError(
            f"the test used the syrupy extension {'.'.join(name)}, which pytest's own process "
            "does not know. Import it at the top of the test's module."
        )

    def _repeat(self, item: pytest.Item, extension: Any, results: Any) -> None:
        made = self._assertions.SnapshotAssertion(
            session=self._config._syrupy,
            extension_class=extension,
            test_location=self._location(item),
            update_snapshots=self._config.option.update_snapshots,
        )
        for number, fields in enumerate(results):
            made._execution_results[number] = self._assertions.AssertionResult(
                **dict(zip(_RESULT, fields, strict=True)),
                asserted_data=None,
                recalled_data=None,
                exception=None,
                test_location=made.test_location,
            )

    def _write(
        self, item: pytest.Item, extension: Any, location: Any, index: Any, data: str
    ) -> None:
        """Queue a snapshot, whose file this process determines."""
        if type(index) not in {int, str} or type(data) is not str:
            raise ValueError("a snapshot of syrupy is not text")
        test = self._location(item)
        if location != extension.get_location(test_location=test, index=index):
            raise ValueError(f"a snapshot of syrupy has another file than {location!r}")
        self._config._syrupy._queued_snapshot_writes[extension, location][test, index] = data

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Keep the snapshots of tests that ended early: which ones they use is not known."""
        selected = self._config._syrupy._selected_items
        for nodeid in selected.keys() & self._inside - self._complete:
            selected[nodeid] = self._status.SKIPPED


def _name(extension: Any) -> list[str]:
    return [extension.__module__, extension.__qualname__]


def _recorded(assertion: Any) -> Any:
    results = assertion.executions.values()
    return [
        _name(type(assertion.extension)),
        [[getattr(one, name) for name in _RESULT] for one in results],
    ]


def _of_item(item: pytest.Item, location: str, queued: Any) -> list[tuple[str, tuple[Any, Any]]]:
    return [
        (location, (index, data)) for (test, index), data in queued.items() if test.item is item
    ]
