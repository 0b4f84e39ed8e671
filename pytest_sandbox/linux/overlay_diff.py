"""List the changes in the writable layer of an overlay, as ``docker diff`` does.

The format of a layer is documented in Documentation/filesystems/overlayfs.rst: a character device
0:0 is a whiteout (a deleted name), the attribute ``overlay.opaque`` marks a directory that replaces
the one below, and ``overlay.redirect`` a renamed one, with the path of its content in the lower
layers.

A layer may contain anything that a test has created. Time and memory are proportional to the number
of changes, whatever their depth, and limited by a :class:`Budget`.
"""

from __future__ import annotations

import bisect
import errno
import os
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from pytest_sandbox.linux.directories import DIRECTORY, DirectoryStack, OpenDirectory, batches
from pytest_sandbox.linux.lower_directories import Lower, OpenLowers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["Budget", "Selection", "changes", "changes_since"]

#: The prefix of attributes in overlays of root, and in those with the option ``userxattr``.
_PREFIXES = ("trusted.overlay.", "user.overlay.")
#: The maximum number of directories to visit later, and of names of one lower directory in memory.
_MAX_PENDING = 200_000
#: The clock is read once for this many changes.
_CLOCK_INTERVAL = 128

#: The directories of lower layers that are merged into one, topmost first.
Merged: TypeAlias = "tuple[Lower, ...]"
Found: TypeAlias = tuple[str, str]


class Selection(Protocol):
    """What a walk visits: a set of paths, as seen from a directory."""

    def below(self, name: str) -> Selection | None:
        """Return what is selected below an entry of the directory; None if neither the entry nor
        anything below it is.
        """


@dataclass(slots=True)
class Budget:
    """Limits of a walk, and what it has counted.

    At most ``entries`` changes are listed, with ``text`` characters in their paths, in ``seconds``
    (None: without limit). Afterwards ``counted`` is the number of changes that were found, and
    ``complete`` is whether all changes were found and listed.

    Entries of the layer whose status has last changed (st_ctime, stat(2)) before ``since``, in
    nanoseconds since the epoch, are left out.
    """

    entries: int = 1_000_000
    text: int = 64 << 20
    seconds: float | None = None
    since: int = 0
    counted: int = 0
    complete: bool = True
    _end: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._end = float("inf") if self.seconds is None else time.monotonic() + self.seconds

    def count(self, length: int) -> bool:
        """Count a change with a path of ``length`` characters; return whether it is listed.

        Raises TimeoutError.
        """
        self.counted += 1
        if not self.counted % _CLOCK_INTERVAL:
            self.check()
        if self.entries <= 0 or self.text < length:
            self.complete = False
            return False
        self.entries -= 1
        self.text -= length
        return True

    def check(self) -> None:
        """Raise TimeoutError if the time is up."""
        if time.monotonic() >= self._end:
            self.complete = False
            raise TimeoutError


@dataclass(slots=True)
class _Level:
    """A directory of the walk.

    ``has_upper`` is whether it exists in the writable layer, ``below`` are the lower directories
    that are merged into it, ``before`` those that had this path before. ``pending`` are the
    subdirectories to visit, each with its ``has_upper``. ``selected`` is None if the walk visits
    everything.
    """

    name: str
    has_upper: bool
    below: Merged
    before: Merged
    selected: Selection | None
    pending: list[tuple[str, bool]] = field(default_factory=list)


def changes(
    upper: int,
    lower: Sequence[str],
    budget: Budget | None = None,
    selection: Selection | None = None,
) -> Iterator[Found]:
    """Yield ``(kind, path)`` for each change of the layer ``upper`` to the directories ``lower``.

    ``upper`` is a descriptor. ``kind`` is "added", "modified" or "deleted"; ``path`` starts with
    "/". A directory that contains a change is "modified", as in ``docker diff``. Files that
    disappear meanwhile are skipped. With ``selection``, other entries and directories are too.
    """
    budget = budget or Budget()
    with OpenLowers(lower) as lowers, DirectoryStack(upper) as stack:
        try:
            yield from _Walk(stack, lowers, budget, selection).run()
        except OSError as error:
            if not isinstance(error, TimeoutError) and error.errno != errno.ESTALE:
                raise
            budget.complete = False


def changes_since(
    upper: int,
    taken: Sequence[str],
    lower: Sequence[str],
    budget: Budget | None = None,
    selection: Selection | None = None,
) -> Iterator[Found]:
    """Yield what :func:`changes` does, including the changes of the layers ``taken``.

    Those are layers of snapshots between ``upper`` and ``lower``, topmost first.
    """
    if not taken:
        return changes(upper, lower, budget, selection)
    budget = budget or Budget()
    found: dict[str, str] = {}
    for at in range(len(taken), 0, -1):
        with OpenDirectory(taken[at - 1]) as fd:
            _merge(found, changes(fd, [*taken[at:], *lower], budget, selection))
    _merge(found, changes(upper, [*taken, *lower], budget, selection))
    return ((kind, path) for path, kind in found.items())


def _merge(found: dict[str, str], newer: Iterable[Found]) -> None:
    paths = sorted(found)
    for kind, path in list(newer):
        before = found.pop(path, None)
        if kind == "deleted":
            _forget_below(found, paths, path + "/")
            if before != "added":
                found[path] = kind
        elif before == "added":
            found[path] = "added"
        else:
            found[path] = "modified" if before == "deleted" else kind


def _forget_below(found: dict[str, str], paths: list[str], start: str) -> None:
    """Remove the paths that start with ``start``; they are adjacent in the sorted ``paths``."""
    for at in range(bisect.bisect_left(paths, start), len(paths)):
        if not paths[at].startswith(start):
            return
        found.pop(paths[at], None)


class _Walk:
    """A walk over a writable layer and the lower layers, from the root down."""

    def __init__(
        self,
        stack: DirectoryStack,
        lowers: OpenLowers,
        budget: Budget,
        selection: Selection | None,
    ) -> None:
        self._stack = stack
        self._lowers = lowers
        self._budget = budget
        self._pending = 0
        self._length = 1  # of the current path, with a "/" at its end
        roots = lowers.roots
        self._levels = [_Level("", True, roots, roots, selection)]

    def run(self) -> Iterator[Found]:
        """Yield every change."""
        yield from self._directory(self._levels[0])
        while self._levels:
            level = self._levels[-1]
            if not level.pending:
                self._leave()
                continue
            self._pending -= 1
            child = self._enter(level, *level.pending.pop())
            if child is not None:
                self._levels.append(child)
                self._length += len(child.name) + 1
                yield from self._directory(child)

    def _leave(self) -> None:
        level = self._levels.pop()
        self._length -= len(level.name) + 1
        if level.has_upper and self._levels:
            self._stack.pop()

    def _directory(self, level: _Level) -> Iterator[Found]:
        """Yield the changes in a directory, and remember the subdirectories to visit."""
        path = ""  # built if it is needed: paths of deep directories are long
        for kind, name in self._names(level):
            if self._budget.count(self._length + len(name)):
                path = path or "/".join([*(one.name for one in self._levels), ""])
                yield kind, path + name
        level.pending.reverse()

    def _names(self, level: _Level) -> Iterator[Found]:
        if level.has_upper:
            yield from self._written(level)
        # In a renamed or replaced directory the lower content is new, and the old may be gone.
        if level.below is not level.before:
            yield from self._moved(level)
            yield from self._gone(level)

    def _written(self, level: _Level) -> Iterator[Found]:
        """Yield the changes that are entries of the writable layer."""
        for batch in batches(self._stack.fd):
            self._budget.check()
            for entry in batch:
                if not _is_selected(level, entry.name):
                    continue
                try:
                    is_directory, is_whiteout = _type(entry)
                except FileNotFoundError:
                    continue
                if is_directory:
                    self._remember(level, entry.name, has_upper=True)
                if self._is_older(entry):
                    continue
                was = self._lowers.mode(level.before, entry.name)
                if not is_whiteout:
                    yield "modified" if was else "added", entry.name
                elif was:
                    yield "deleted", entry.name

    def _is_older(self, entry: os.DirEntry[str]) -> bool:
        if not self._budget.since:
            return False
        try:
            return entry.stat(follow_symlinks=False).st_ctime_ns < self._budget.since
        except FileNotFoundError:
            return True

    def _moved(self, level: _Level) -> Iterator[Found]:
        """Yield the lower content of a directory that was renamed to this path."""
        for name in self._names_in(level.below):
            mode = self._lowers.mode(level.below, name)
            if not mode or self._is_written(level, name) or not _is_selected(level, name):
                continue
            yield "modified" if self._lowers.mode(level.before, name) else "added", name
            if stat.S_ISDIR(mode):
                self._remember(level, name, has_upper=False)

    def _gone(self, level: _Level) -> Iterator[Found]:
        """Yield the names that existed at this path before and do not exist now.

        Those with a whiteout in the layer were yielded already.
        """
        for name in self._names_in(level.before):
            is_there = self._is_written(level, name) or self._lowers.mode(level.below, name)
            was_there = self._lowers.mode(level.before, name) and _is_selected(level, name)
            if was_there and not is_there:
                yield "deleted", name

    def _names_in(self, merged: Merged) -> Iterator[str]:
        names, is_all = self._lowers.names(merged, _MAX_PENDING)
        self._budget.complete &= is_all
        for at, name in enumerate(names):
            if not at % _CLOCK_INTERVAL:  # a name need not be a change
                self._budget.check()
            yield name

    def _is_written(self, level: _Level, name: str) -> bool:
        if not level.has_upper:
            return False
        try:
            os.stat(name, dir_fd=self._stack.fd, follow_symlinks=False)
        except OSError:
            return False
        return True

    def _remember(self, level: _Level, name: str, *, has_upper: bool) -> None:
        if self._pending >= _MAX_PENDING:
            self._budget.complete = False
            return
        self._pending += 1
        level.pending.append((name, has_upper))

    def _enter(self, level: _Level, name: str, has_upper: bool) -> _Level | None:
        """Return a directory to visit; None if it has disappeared or cannot be read."""
        before = self._lowers.step(level.before, name)
        selected = None if level.selected is None else level.selected.below(name)
        if not has_upper:
            below = self._lowers.step(level.below, name)
            return _Level(name, False, below, before, selected) if below else None
        try:
            self._stack.push(os.open(name, DIRECTORY, dir_fd=self._stack.fd))
        except OSError:
            return None
        return _Level(name, True, self._below(level, name, before), before, selected)

    def _below(self, level: _Level, name: str, before: Merged) -> Merged:
        """Return the lower directories of the directory that was just entered.

        It is the object ``before`` if the directory was not moved.
        """
        if _attribute(self._stack.fd, "opaque") == b"y":
            return () if before else before
        redirect = _attribute(self._stack.fd, "redirect")
        if redirect is not None:
            below = self._redirected(level, os.fsdecode(redirect))
            return before if self._lowers.is_same(below, before) else below
        return before if level.below is level.before else self._lowers.step(level.below, name)

    def _redirected(self, level: _Level, redirect: str) -> Merged:
        absolute, *parts = redirect.split("/")
        if absolute:  # a relative redirect: renamed within its directory
            parts = [absolute]
        merged = level.below if absolute else self._lowers.roots
        # A payload can write the attribute, so it must not lead out of the layer.
        for part in parts:
            merged = self._lowers.step(merged, part) if part not in {"", ".", ".."} else ()
        return merged


def _is_selected(level: _Level, name: str) -> bool:
    return level.selected is None or level.selected.below(name) is not None


def _type(entry: os.DirEntry[str]) -> tuple[bool, bool]:
    """Return whether an entry of the writable layer is a directory, and whether a whiteout."""
    if entry.is_dir(follow_symlinks=False):
        return True, False
    if entry.is_file(follow_symlinks=False) or entry.is_symlink():
        return False, False
    status = entry.stat(follow_symlinks=False)
    return False, stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _attribute(directory: int, name: str) -> bytes | None:
    for prefix in _PREFIXES:
        try:
            return os.getxattr(directory, prefix + name)
        except OSError:
            continue
    return None
