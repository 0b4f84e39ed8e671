"""What a body needs of the host where its root is an image: the interpreter, what it imports from,
the suite, and the session's temporary files.
"""

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

__all__ = ["directories"]

#: Prefixes that an image has for itself: of these only Python's own directories are taken.
_SHARED = {"/", "/usr", "/usr/local"}
#: Modules of the standard library that load foreign libraries, which an image need not have: loaded
#: before the root changes.
_WITH_LIBRARIES = ("bz2", "ctypes", "lzma", "sqlite3", "ssl", "zlib")


def directories(config: pytest.Config) -> tuple[str, ...]:
    """Return the directories, none below another."""
    for name in _WITH_LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(name)
    wanted = [sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(sys.executable)]
    wanted = [
        directory
        for directory in wanted
        if os.path.dirname(directory) not in _SHARED and directory not in _SHARED
    ]
    wanted += [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    wanted += [*sys.path, str(config.rootpath), str(config.invocation_params.dir), os.getcwd()]
    wanted.append(compat.base_temporary(config))
    found = {
        os.path.abspath(directory) for directory in wanted if directory and os.path.isdir(directory)
    } - _SHARED
    return tuple(
        sorted(
            directory
            for directory in found
            if not any(_is_below(directory, other) for other in found)
        )
    )


def _is_below(directory: str, other: str) -> bool:
    return directory.startswith(f"{other}/")
