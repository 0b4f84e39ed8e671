"""What a body needs of the host where its root is an image: the interpreter, what it imports from, the suite, and the session's temporary files."""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.plugin import compat

if TYPE_CHECKING:
    import pytest

__all__ = ["folders"]

#: Prefixes that an image has for itself: of these only Python's own folders are taken.
_SHARED = {"/", "/usr", "/usr/local"}
#: Modules of the standard library that load foreign libraries, which an image need not have: loaded before the root changes.
_WITH_LIBRARIES = ("bz2", "ctypes", "lzma", "sqlite3", "ssl", "zlib")


def folders(config: pytest.Config) -> tuple[str, ...]:
    """Return the folders, none below another."""
    for name in _WITH_LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(name)
    wanted = [sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(sys.executable)]
    wanted = [folder for folder in wanted if os.path.dirname(folder) not in _SHARED and folder not in _SHARED]
    wanted += [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    wanted += [*sys.path, str(config.rootpath), str(config.invocation_params.dir), os.getcwd()]
    wanted.append(compat.base_temporary(config))
    found = {os.path.abspath(folder) for folder in wanted if folder and os.path.isdir(folder)} - _SHARED
    return tuple(sorted(folder for folder in found if not any(_is_below(folder, other) for other in found)))


def _is_below(folder: str, other: str) -> bool:
    return folder.startswith(f"{other}/")
