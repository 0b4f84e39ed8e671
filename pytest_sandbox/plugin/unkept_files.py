"""The line at the end of a session that tells which files of passing tests were discarded with
their containers, although they were below the rootdir, where one looks for them.

results.py calls :func:`record` with changes that hints.py has looked up anyway. An xdist worker
sends its figures to the controller, which prints the sum.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_sandbox.plugin.registration import registered
from pytest_sandbox.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pytest

    from pytest_sandbox.outcome import Change

__all__ = ["UnkeptFiles", "add_figures_of_worker", "record"]

_NAME = "sandbox-unkept-files"
_WORKER_KEY = "sandbox_unkept_files"
_MAX_SHOWN = 3
#: Directories that Python and pytest write without being asked; coverage's files have a suffix.
_CACHES = {"__pycache__", ".pytest_cache"}


@dataclass
class _Figures:
    tests: int = 0
    files: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, tests: int, files: int, first: list[str]) -> None:
        self.tests += tests
        self.files += files
        self.first = [*self.first, *first][:_MAX_SHOWN]


class UnkeptFiles:
    """A plugin that counts the files and prints the line."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._root = os.path.realpath(config.rootpath).rstrip("/") + "/"
        self._ignored = _ignored_directories(config)
        self.figures = _Figures()

    @classmethod
    def of(cls, config: pytest.Config) -> UnkeptFiles:
        """Return the plugin of a session, registered at the first call."""
        return registered(config, cls, _NAME)

    def lost(self, written: Iterable[str], copied: Sequence[str]) -> list[str]:
        """Return the paths below the rootdir, relative to it and sorted, without directories that
        contain others and without what no user has asked for.
        """
        found = [path for path in written if path.startswith(self._root)]
        kept = {*copied, *map(os.path.dirname, (*found, *copied))}
        return sorted(
            path.removeprefix(self._root)
            for path in found
            if path not in kept
            and not path.startswith(self._ignored)
            and _CACHES.isdisjoint(path.split("/"))
            and not os.path.basename(path).startswith(".coverage")
        )

    def pytest_sessionfinish(self) -> None:
        """Send the figures of an xdist worker."""
        output: Any = getattr(self._config, "workeroutput", None)
        if output is not None:
            output[_WORKER_KEY] = asdict(self.figures)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the line."""
        figures = self.figures
        if not figures.files:
            return
        shown = ", ".join(map(printable, figures.first))
        more = ", ..." if figures.files > len(figures.first) else ""
        tests = "1 test" if figures.tests == 1 else f"{figures.tests} tests"
        files = "1 file" if figures.files == 1 else f"{figures.files} files"
        terminalreporter.section("discarded files")
        terminalreporter.line(
            f"{tests} that passed wrote {files} below the rootdir, discarded with the containers: "
            f"{shown}{more}"
        )
        example = printable(os.path.dirname(figures.first[0]) or figures.first[0])
        terminalreporter.line(f'sandbox_artifacts = ["{example}"] copies such files to the host.')


def _ignored_directories(config: pytest.Config) -> tuple[str, ...]:
    """Return the starts of paths of pytest's own directories, which may be below the rootdir."""
    own = [getattr(config.option, "basetemp", None)]
    with suppress(ValueError):  # without the cache plugin
        own.append(config.getini("cache_dir"))
    return tuple(
        os.path.realpath(os.path.join(config.rootpath, path)) + "/" for path in own if path
    )


def record(item: pytest.Item, changes: Iterable[Change], copied: Sequence[str]) -> None:
    """Count what a test that passed has written, except for what was copied to the host."""
    plugin = UnkeptFiles.of(item.config)
    lost = plugin.lost((one.path for one in changes if one.kind != "deleted"), copied)
    if lost:
        plugin.figures.add(1, len(lost), lost[:_MAX_SHOWN])


def add_figures_of_worker(config: pytest.Config, output: dict[str, Any]) -> None:
    """Add the figures of an xdist worker in the controller."""
    figures = output.get(_WORKER_KEY)
    if figures is not None and figures["files"]:
        UnkeptFiles.of(config).figures.add(**figures)
