"""Modules of the standard library that tests import while they run.

With plain pytest, what one test imports is there for all later ones. A test inside imports into
its own process, so each test would import the same modules again. So the test process names those
of the standard library, and the parent imports them from its own files: the forks for later tests
have them.

The parent imports nothing else that only a test has asked for: code of the suite, or of an
installed package, may do anything when it is imported. Of those packages it gets the number of
modules (repeated_imports.py).
"""

from __future__ import annotations

import codecs
import importlib.util
import os
import sys
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.plugin.messages import MAX_IMPORTED

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.machinery import ModuleSpec

    from pytest_sandbox.plugin.report_channel import Receiver, ReportChannel

__all__ = ["ImportSender", "import_in_parent"]

#: Modules that write, open windows or change the terminal when they are imported, and tests.
_EXCLUDED = frozenset(
    {
        "__hello__",
        "__main__",
        "__phello__",
        "antigravity",
        "curses",
        "idlelib",
        "readline",
        "rlcompleter",
        "test",
        "tests",
        "this",
        "tkinter",
        "turtle",
        "turtledemo",
    }
)
_ENCODINGS = "encodings."
#: Smaller packages are not worth a message.
_LEAST_MODULES = 10


class ImportSender:
    """The side of the test process. Created before the fork, it knows how many modules there were.

    Only the number is compared: reading the names would copy the pages of their reference counts.
    """

    def __init__(self) -> None:
        self._count = len(sys.modules)

    def send(self, channel: ReportChannel) -> None:
        """Send what was imported since: the names of the standard library's modules, and of other
        packages the number of modules.
        """
        if len(sys.modules) <= self._count:
            return
        # A dictionary keeps the order of insertion. If modules were also removed, some are missed.
        names = [name for name in list(sys.modules)[self._count :] if type(name) is str]
        found = [name for name in names if _may_import(name)]
        packages = Counter(_package(name) for name in names if not _is_of_library(name))
        large = {name: count for name, count in packages.items() if count >= _LEAST_MODULES}
        if found or large:
            channel.send("imported", [found[:MAX_IMPORTED], large])


def import_in_parent(receiver: Receiver) -> None:
    """Import what a test process has named, unless this process would find it elsewhere."""
    for names, _packages in receiver.of_kind("imported"):
        missing = [name for name in names if name not in sys.modules and _may_import(name)]
        if missing:
            _import(missing)


def _package(name: str) -> str:
    return name.partition(".")[0]


def _is_of_library(name: str) -> bool:
    return _package(name) in sys.stdlib_module_names


def _may_import(name: str) -> bool:
    return _is_of_library(name) and _EXCLUDED.isdisjoint(name.split("."))


def _import(names: Iterable[str]) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the test has shown those of deprecated modules
        for name in names:
            with suppress(Exception):  # it is optional here: a test that needs it will report it
                if _is_standard(importlib.util.find_spec(_package(name))):
                    importlib.import_module(name)
                    if name.startswith(_ENCODINGS):
                        codecs.lookup(name.removeprefix(_ENCODINGS))  # fills the codecs' cache


def _is_standard(spec: ModuleSpec | None) -> bool:
    """Tell whether a module is the standard library's, and not one of the suite with its name."""
    if spec is None:
        return False
    if spec.origin in ("built-in", "frozen"):
        return True
    path = spec.origin or ""
    is_installed = any(f"/{one}/" in path for one in ("site-packages", "dist-packages"))
    return not is_installed and path.startswith(f"{os.path.dirname(os.__file__)}/")
