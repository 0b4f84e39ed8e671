"""Look up files in the lower layers of an overlay, with a fixed number of open descriptors.

A path in a layer may be longer than PATH_MAX, so a directory is represented by its name and its
parent, and opened when it is used.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Self

from pytest_sandbox.linux import process
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.linux.temporary_descriptors import TemporaryDescriptors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Lower", "OpenLowers"]

#: The attribute of opaque directories in overlays of root, and in those with ``userxattr``.
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
_MAX_OPEN = 64
#: The longest path in bytes that is passed to the kernel; PATH_MAX is 4096.
_MAX_PATH = 4000


class Lower:
    """A directory of a lower layer: ``name`` in ``parent``; for the root of a layer, its path."""

    __slots__ = ("fd", "name", "parent")

    def __init__(self, parent: Lower | None, name: str) -> None:
        self.parent = parent
        self.name = name
        self.fd = -1


class OpenLowers:
    """The lower layers, by their paths (topmost first), and their recently used directories."""

    def __init__(self, layers: Sequence[str]) -> None:
        self.roots = tuple(Lower(None, path.rstrip("/") or "/") for path in layers)
        self._used: dict[Lower, None] = {}
        with Deferred():
            self._opened = TemporaryDescriptors()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._opened.close()

    def mode(self, merged: Sequence[Lower], name: str) -> int:
        """Return the mode (st_mode) of ``name`` in a merged directory; 0 if it does not exist."""
        modes = (self._mode(lower, name) for lower in merged)
        return next((mode for mode in modes if mode is not None), 0)

    def step(self, merged: Sequence[Lower], name: str) -> tuple[Lower, ...]:
        """Return the directories that are merged as ``name``; empty if it is not a directory."""
        found: list[Lower] = []
        for lower in merged:
            mode = self._mode(lower, name)
            if mode is None:
                continue
            if not stat.S_ISDIR(mode):
                break
            found.append(Lower(lower, name))
            if len(merged) > 1 and self._is_opaque(lower, name):
                break
        return tuple(found)

    def names(self, merged: Sequence[Lower], most: int) -> tuple[list[str], bool]:
        """Return up to ``most`` names of a merged directory, sorted, and whether these are all."""
        names: set[str] = set()
        for lower in merged:
            for name in self._listed(lower):
                names.add(name)
                if len(names) >= most:
                    return sorted(names), False
        return sorted(names), True

    def is_same(self, one: Sequence[Lower], other: Sequence[Lower]) -> bool:
        """Return whether two merged directories consist of the same directories."""
        try:
            return len(one) == len(other) and all(
                os.path.samestat(os.fstat(self._fd(a)), os.fstat(self._fd(b)))
                for a, b in zip(one, other, strict=True)
            )
        except OSError:
            return False

    def _mode(self, lower: Lower, name: str) -> int | None:
        """Return a mode; 0 for a whiteout, None if it does not exist or is not accessible."""
        try:
            status = os.stat(name, dir_fd=self._fd(lower), follow_symlinks=False)
        except OSError:
            return None
        return 0 if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0 else status.st_mode

    def _is_opaque(self, lower: Lower, name: str) -> bool:
        for attribute in _OPAQUE:
            try:
                path = f"{process.path_of(self._fd(lower))}/{name}"
                return os.getxattr(path, attribute, follow_symlinks=False) == b"y"
            except OSError:
                continue
        return False

    def _listed(self, lower: Lower) -> Iterator[str]:
        try:
            with os.scandir(process.path_of(self._fd(lower))) as entries:
                yield from (entry.name for entry in entries)
        except OSError:
            return

    def _fd(self, lower: Lower) -> int:
        """Return an O_PATH descriptor, which is closed after 64 other directories were used."""
        if lower.fd < 0:
            with Deferred():
                lower.fd = self._open(lower)
                self._opened.fds.append(lower.fd)
        else:
            del self._used[lower]
        self._used[lower] = None
        if len(self._used) > _MAX_OPEN:
            self._close(next(iter(self._used)))
        return lower.fd

    def _open(self, lower: Lower) -> int:
        if lower.parent is None:
            return os.open(lower.name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        names: list[str] = []
        one: Lower = lower
        while one.parent is not None and one.fd < 0:
            names.append(one.name)
            one = one.parent
        return _walk(self._fd(one), names[::-1])

    def _close(self, lower: Lower) -> None:
        with Deferred():
            del self._used[lower]
            self._opened.fds.remove(lower.fd)
            os.close(lower.fd)
            lower.fd = -1


def _walk(start: int, names: Sequence[str]) -> int:
    """Return a descriptor of the directory ``names`` below ``start``, without following links."""
    fd = os.dup(start)
    try:
        for path in _join(names):
            child = sc.openat2(
                path,
                os.O_PATH | os.O_DIRECTORY,
                sc.RESOLVE_BENEATH | sc.RESOLVE_NO_SYMLINKS,
                dir_fd=fd,
            )
            os.close(fd)
            fd = child
    except BaseException:
        os.close(fd)
        raise
    return fd


def _join(names: Sequence[str]) -> Iterator[bytes]:
    """Yield the names joined to paths that are short enough for the kernel."""
    path = b""
    for name in map(os.fsencode, names):
        if len(path) + len(name) >= _MAX_PATH:
            yield path
            path = b""
        path = path + b"/" + name if path else name
    if path:
        yield path
