"""The names by which dlopen(3) finds the shared libraries of this process.

The GNU C library compares the path that it is given with the names by which each library was
opened. Only if none is equal, it opens the file and compares device and inode. A fork in a
container gets those of an overlay, so there a library is found by its names alone: by any other
path it would be loaded a second time, and with RTLD_NOLOAD it would seem not to be loaded.
threadpoolctl asks for the real paths of libraries, which others load through a link or through
"..", as NumPy does its own.

Opening a library once by its real path adds that to its names, which a fork inherits.
"""

from __future__ import annotations

import os

from pytest_sandbox.linux import native_code

__all__ = ["add_real_paths"]

#: How many libraries were loaded when their names were last looked at, including those that are
#: unloaded again.
_looked_at = 0


def add_real_paths() -> None:
    """Let dlopen(3) find each loaded library by its real path, in this process and its forks.

    Without a new library since the last call it takes a few microseconds.
    """
    global _looked_at  # noqa: PLW0603
    count = native_code.count_of_loads()
    if count == _looked_at:
        return
    _looked_at = count
    for name in native_code.names_of_libraries():
        path = os.path.realpath(name)
        if path != name:
            native_code.find_library(path)
