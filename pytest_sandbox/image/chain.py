"""Attributes of implied directories: those that contain entries of a layer, but have no entry of
their own in its archive. Their attributes are those in the layers below, which differ between
images.

A stored layer is shared by images and never modified. An image with such directories gets a small
layer of its own on top, of empty directories with the right attributes, which overlayfs merges with
those below (overlayfs.rst, "Merged directories").
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytest_sandbox.image.flatten import is_opaque

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Attributes", "Lower", "inherited_attributes", "make_layer"]

_OVERLAY_XATTRS: Final = ("trusted.overlay.", "user.overlay.")
_FEW: Final = 16  # up to so many names, lstat() is faster than a listing


@dataclass(frozen=True, slots=True)
class Attributes:
    """The attributes of a directory; with ``mtime_ns`` None, its mtime is not changed."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime_ns: int | None = None
    xattrs: tuple[tuple[str, bytes], ...] = ()

    @classmethod
    def of(cls, path: bytes) -> Attributes:
        found = os.lstat(path)
        names = os.listxattr(path, follow_symlinks=False)
        xattrs = tuple(
            (name, os.getxattr(path, name, follow_symlinks=False))
            for name in sorted(names)
            if not name.startswith(_OVERLAY_XATTRS)
        )
        mode = stat.S_IMODE(found.st_mode)
        return cls(mode, found.st_uid, found.st_gid, found.st_mtime_ns, xattrs)

    def matches(self, other: Attributes) -> bool:
        """Tell whether a directory with the attributes ``other`` needs no change."""
        mine = (self.mode, self.uid, self.gid, self.xattrs)
        theirs = (other.mode, other.uid, other.gid, other.xattrs)
        return mine == theirs and self.mtime_ns in (None, other.mtime_ns)

    def apply(self, path: bytes) -> None:
        """Set these attributes on a directory, as far as this user is permitted."""
        with contextlib.suppress(PermissionError):
            os.chown(path, self.uid, self.gid)
        for name, value in self.xattrs:
            with contextlib.suppress(OSError):
                os.setxattr(path, name, value)
        os.chmod(path, self.mode)
        if self.mtime_ns is not None:
            os.utime(path, ns=(self.mtime_ns, self.mtime_ns))


@dataclass(frozen=True, slots=True)
class Lower:
    """A layer's directory, its implied directories, and its directories that contain whiteouts."""

    directory: bytes
    implied: frozenset[bytes]
    whiteouts: frozenset[bytes] = frozenset()


@dataclass(slots=True)
class _Merged:
    """One merged directory: the layers that its content is from (topmost first), and those that its
    attributes may be from, which an opaque directory does not hide.
    """

    path: bytes
    content: list[Lower]
    described: list[Lower]


def inherited_attributes(layers: Sequence[Lower]) -> dict[bytes, Attributes]:
    """Return the directories of an image's layers (topmost first) whose attributes differ from
    those in the topmost layer that has them, and their parents.

    Directories with whiteouts that are in one layer only are included: overlayfs hides whiteouts
    in merged directories only, and in others lists names that cannot be opened.

    Each directory is read once in each layer that has it: the time is linear in the number of
    entries.
    """
    wanted = _children(path for one in layers for path in one.implied | one.whiteouts)
    found: dict[bytes, Attributes] = {}
    wrong: list[bytes] = []
    pending = [_Merged(b"", list(layers), list(layers))]
    while pending:
        merged = pending.pop()
        found[merged.path], is_wrong = _effective(merged)
        if is_wrong or _shows_whiteouts(merged):
            wrong.append(merged.path)
        pending += _below(merged, wanted.get(merged.path, set()))
    needed = {above for path in wrong for above in _with_parents(path)}
    return {path: found[path] for path in sorted(needed)}


def _shows_whiteouts(merged: _Merged) -> bool:
    """Tell whether a directory with whiteouts is not merged with another one. The root is always
    merged with the container's writable layer.
    """
    is_alone = len(merged.content) == 1 and bool(merged.path)
    return is_alone and merged.path in merged.content[0].whiteouts


def _with_parents(path: bytes) -> list[bytes]:
    parts = path.split(b"/") if path else []
    return [b"/".join(parts[:count]) for count in range(len(parts) + 1)]


def _children(paths: Iterable[bytes]) -> dict[bytes, set[bytes]]:
    """Return the names in each directory that are on the way to ``paths``."""
    children: dict[bytes, set[bytes]] = {}
    for path in paths:
        while path:
            above, _, name = path.rpartition(b"/")
            names = children.setdefault(above, set())
            if name in names:
                break
            names.add(name)
            path = above  # noqa: PLW2901 - up to the root
    return children


def _effective(merged: _Merged) -> tuple[Attributes, bool]:
    """Return a directory's attributes, and whether those in the topmost layer differ."""
    top = merged.content[0]
    actual = Attributes.of(os.path.join(top.directory, merged.path))
    if merged.path not in top.implied:
        return actual, False
    source = next((one for one in merged.described if merged.path not in one.implied), None)
    if source is None:  # no layer has an entry of it
        expected = Attributes(uid=os.geteuid(), gid=os.getegid())
    else:
        expected = Attributes.of(os.path.join(source.directory, merged.path))
    if not merged.path:  # the root has the mtime of the container's writable layer
        expected = Attributes(expected.mode, expected.uid, expected.gid, None, expected.xattrs)
    return expected, not expected.matches(actual)


def _below(merged: _Merged, names: set[bytes]) -> list[_Merged]:
    """Return the subdirectories with these names of a merged directory."""
    content: dict[bytes, list[Lower]] = {}
    described: dict[bytes, list[Lower]] = {}
    hidden: set[bytes] = set()
    replaced: set[bytes] = set()
    for lower in merged.content if names else ():
        where = os.path.join(lower.directory, merged.path)
        for name, is_directory in _entries(where, names - replaced):
            if not is_directory:  # a file or a whiteout
                replaced.add(name)
                continue
            if name not in hidden:
                content.setdefault(name, []).append(lower)
            described.setdefault(name, []).append(lower)
            if is_opaque(os.path.join(where, name)):
                hidden.add(name)
    above = merged.path + b"/" if merged.path else b""
    return [_Merged(above + name, content[name], described[name]) for name in content]


def _entries(where: bytes, names: set[bytes]) -> list[tuple[bytes, bool]]:
    """Return those of the names that exist, each with whether it is a directory."""
    if len(names) > _FEW:
        with os.scandir(where) as entries:
            return [
                (one.name, one.is_dir(follow_symlinks=False))
                for one in entries
                if one.name in names
            ]
    found = []
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            found.append((name, stat.S_ISDIR(os.lstat(os.path.join(where, name)).st_mode)))
    return found


def make_layer(attributes: dict[bytes, Attributes], target: bytes) -> int:
    """Create these directories in the empty directory ``target``; return their number."""
    paths = sorted(attributes)
    for path in paths:
        if path:
            os.mkdir(os.path.join(target, path), 0o700)
    for path in reversed(paths):  # subdirectories first: creating them changes the mtime
        attributes[path].apply(os.path.join(target, path))
    return len(paths)
