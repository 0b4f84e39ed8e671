"""The directories of the host that a test needs when its container's root is an image: the Python
installation, its import paths, the suite, and the session's temporary directory.

protocol.py passes them to the container, which has them at the same paths.
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

#: Prefixes that hold programs and libraries of the image itself: only Python's own directories
#: below them are passed in.
_SHARED_PREFIXES = {"/", "/usr", "/usr/local"}
#: Standard modules that load shared libraries, which an image may not have. They are imported
#: before the root changes.
_WITH_LIBRARIES = ("bz2", "ctypes", "lzma", "sqlite3", "ssl", "zlib")


def directories(config: pytest.Config) -> tuple[str, ...]:
    """Return absolute paths, none of which is below another."""
    for name in _WITH_LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(name)
    wanted = [*_installation(), *sys.path, compat.base_temporary(config)]
    wanted += [str(config.rootpath), str(config.invocation_params.dir), os.getcwd()]
    found = {os.path.abspath(path) for path in wanted if path and os.path.isdir(path)}
    found -= _SHARED_PREFIXES
    return tuple(sorted(path for path in found if not _is_below_any(path, found)))


def _installation() -> list[str]:
    prefixes = [sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(sys.executable)]
    own = [
        prefix
        for prefix in prefixes
        if prefix not in _SHARED_PREFIXES and os.path.dirname(prefix) not in _SHARED_PREFIXES
    ]
    libraries = ("stdlib", "platstdlib", "purelib", "platlib")
    return own + [sysconfig.get_path(name) for name in libraries]


def _is_below_any(path: str, others: set[str]) -> bool:
    return any(path.startswith(f"{other}/") for other in others)
