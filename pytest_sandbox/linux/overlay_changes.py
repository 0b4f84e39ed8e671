"""What a writable layer changed: the tree that is seen through an overlay against the tree below it.

The format of a layer is the kernel's (Documentation/filesystems/overlayfs.rst): a character device 0:0 stands for a deletion, the attribute
``overlay.opaque`` marks a folder that replaces the one below, ``overlay.redirect`` one that was renamed, with where its content lies below.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["changes", "changes_since"]

#: As root's overlays keep their attributes, and as those of a user namespace.
_PREFIXES = ("trusted.overlay.", "user.overlay.")
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

#: One folder as it lies in several layers: the paths of those that have a part in it, topmost first.
Merged: TypeAlias = "tuple[str, ...]"
Found: TypeAlias = tuple[str, str]


@dataclass(slots=True)
class _Folder:
    """A folder that is seen at ``path``: its part in the writable layer (-1: none), what is merged into it, and what was there before."""

    upper: int
    path: str
    below: Merged
    before: Merged


def changes(upper: int, lower: Sequence[str]) -> Iterator[Found]:
    """Yield ``(kind, path)`` for all that the writable layer ``upper`` (a folder's descriptor) says about the folders ``lower``.

    ``kind`` is "added", "modified" or "deleted"; ``path`` begins with "/". A folder that holds a change is itself "modified", as
    ``docker diff`` says it. What vanishes meanwhile is left out.
    """
    roots = tuple(folder.rstrip("/") for folder in lower)
    open_ = [_Folder(os.dup(upper), "", roots, roots)]
    walks = [_walk(open_[0], roots)]
    try:
        while walks:
            found = next(walks[-1], None)
            if found is None:
                walks.pop()
                _close(open_.pop())
            elif isinstance(found, _Folder):
                open_.append(found)
                walks.append(_walk(found, roots))
            else:
                yield found
    finally:
        for folder in open_:
            _close(folder)


def changes_since(upper: int, taken: Sequence[str], lower: Sequence[str]) -> Iterator[tuple[str, str]]:
    """As :func:`changes`, where the topmost of what ``upper`` lies on, ``taken``, is not what is compared with, but part of the changes."""
    found: dict[str, str] = {}
    for at in range(len(taken), 0, -1):
        fd = os.open(taken[at - 1], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _merge(found, changes(fd, [*taken[at:], *lower]))
        finally:
            os.close(fd)
    _merge(found, changes(upper, [*taken, *lower]))
    return ((kind, path) for path, kind in found.items())


def _merge(found: dict[str, str], newer: Iterator[tuple[str, str]]) -> None:
    for kind, path in list(newer):
        before = found.pop(path, None)
        if kind == "deleted":
            for below in [one for one in found if one.startswith(path + "/")]:
                del found[below]
            if before != "added":
                found[path] = kind
        elif before == "added":
            found[path] = "added"
        else:
            found[path] = "modified" if before == "deleted" else kind


def _close(folder: _Folder) -> None:
    if folder.upper >= 0:
        os.close(folder.upper)


def _walk(folder: _Folder, roots: Merged) -> Iterator[Found | _Folder]:
    """Yield what changed directly in a folder, and the folders in it that have to be walked."""
    written = _written(folder.upper)
    seen = {name for name, mode in written.items() if mode}
    before: set[str] = {name for name, mode in written.items() if _mode(folder.before, name)}
    if folder.below != folder.before:  # renamed or replaced: what lies below is news, what was here before may be gone
        seen |= {name for name in _names(folder.below) if name not in written}
        before = _names(folder.before)
    for name in sorted(seen | before):
        path = f"{folder.path}/{name}"
        if name not in seen:
            yield "deleted", path
            continue
        yield "modified" if name in before else "added", path
        child = _child(folder, name, written.get(name, 0), roots)
        if child is not None:
            yield child


def _written(upper: int) -> dict[str, int]:
    """Return name and mode of what is in the writable layer's folder; the mode of a deletion is 0."""
    found = {}
    for name in os.listdir(upper) if upper >= 0 else ():
        try:
            found[name] = _shown(os.stat(name, dir_fd=upper, follow_symlinks=False))
        except FileNotFoundError:
            continue
    return found


def _shown(status: os.stat_result) -> int:
    return 0 if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0 else status.st_mode


def _child(folder: _Folder, name: str, mode: int, roots: Merged) -> _Folder | None:
    """Return the folder ``name`` to be walked, None where it is none; ``mode`` is that of its part in the writable layer, 0 without one."""
    path, before = f"{folder.path}/{name}", _step(folder.before, name)
    if not mode:
        below = _step(folder.below, name)
        return _Folder(-1, path, below, before) if below else None
    if not stat.S_ISDIR(mode):
        return None
    try:
        upper = os.open(name, _OPEN, dir_fd=folder.upper)
    except OSError:  # gone, or another kind of thing by now
        return None
    return _Folder(upper, path, _below(upper, folder, name, roots), before)


def _below(upper: int, folder: _Folder, name: str, roots: Merged) -> Merged:
    """Return what is merged into a folder of the writable layer."""
    if _attribute(upper, "opaque") == b"y":
        return ()
    redirect = _attribute(upper, "redirect")
    if redirect is None:
        return _step(folder.below, name)
    absolute, *parts = os.fsdecode(redirect).split("/")
    if absolute:  # the name of before, renamed within its folder
        parts = [absolute]
    merged = folder.below if absolute else roots
    for part in parts:  # a user's attribute can be forged, and must not lead out
        merged = _step(merged, part) if part not in {"", ".", ".."} else ()
    return merged


def _attribute(folder: int, name: str) -> bytes | None:
    for prefix in _PREFIXES:
        try:
            return os.getxattr(folder, prefix + name)
        except OSError:
            continue
    return None


def _step(merged: Merged, name: str) -> Merged:
    """Return the folder ``name`` in a merged one; empty where there is none, or something else."""
    found: list[str] = []
    for layer in merged:
        path = f"{layer}/{name}"
        mode = _lstat(path)
        if mode is None:
            continue
        if not mode or not stat.S_ISDIR(mode):
            break
        found.append(path)
        if len(merged) > 1 and _is_opaque(path):
            break
    return tuple(found)


def _is_opaque(path: str) -> bool:
    try:
        folder = os.open(path, _OPEN)
    except OSError:
        return False
    try:
        return _attribute(folder, "opaque") == b"y"
    finally:
        os.close(folder)


def _mode(merged: Merged, name: str) -> int:
    """Return the mode of what is seen as ``name`` in a merged folder; 0 where there is nothing."""
    modes = (_lstat(f"{layer}/{name}") for layer in merged)
    return next((mode for mode in modes if mode is not None), 0)


def _lstat(path: str) -> int | None:
    """Return a mode, 0 for a deletion, None for what is not there."""
    try:
        return _shown(os.lstat(path))
    except OSError:
        return None


def _names(merged: Merged) -> set[str]:
    names: set[str] = set()
    for layer in merged:
        try:
            names.update(os.listdir(layer or "/"))
        except OSError:
            continue
    return {name for name in names if _mode(merged, name)}
