"""The setting ``artifacts``: files that a test leaves for people or for another program are copied
to the host when the test has ended, whatever its result.

results.py and fixtures.py call :func:`copy_artifacts`. An adapter of a plugin that writes files
adds their pattern with :func:`add_pattern`.
"""

from __future__ import annotations

import os
import re
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.container.changed_files import copy_changed
from pytest_sandbox.container.path_patterns import Pattern, Patterns, fixed_parts
from pytest_sandbox.errors import SandboxError
from pytest_sandbox.plugin import compat, session_state
from pytest_sandbox.plugin.stash import INSIDE, SETTINGS
from pytest_sandbox.printable import printable
from pytest_sandbox.settings.schema import TMP_PATH
from pytest_sandbox.units import mib

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.container.changed_files import Copied
    from pytest_sandbox.container.container import Container
    from pytest_sandbox.container.diff import Changes

__all__ = ["add_pattern", "are_wanted", "copy_artifacts", "prepare", "section"]

_ADDED = pytest.StashKey[list[Any]]()
_RESOLVED = pytest.StashKey[dict[str, Pattern]]()
_MAX_SHOWN = 3
_MAX_LISTED = 20


def add_pattern(config: pytest.Config, pattern: str | Callable[[pytest.Item], str | None]) -> None:
    """Add a pattern for all tests of the session, in the form of the setting, or a function that
    returns it for a test.
    """
    config.stash.setdefault(_ADDED, []).append(pattern)


def _patterns(item: pytest.Item) -> tuple[str, ...]:
    if not item.stash.get(INSIDE, False):  # it holds a container: other plugins' files are outside
        return item.stash[SETTINGS].artifacts
    added = [one(item) if callable(one) else one for one in item.config.stash.get(_ADDED, ())]
    return (*item.stash[SETTINGS].artifacts, *filter(None, added))


def are_wanted(item: pytest.Item) -> bool:
    """Tell whether files of the test are copied."""
    return bool(_patterns(item))


def prepare(item: pytest.Item) -> None:
    """Create the parent of ``tmp_path`` before the fork if it is needed: a test process that has to
    create it would choose another one.
    """
    if any(one.startswith(TMP_PATH) for one in _patterns(item)):
        compat.base_temporary(item.config)


def copy_artifacts(
    item: pytest.Item, container: Container, known: Changes | None = None, since: int = 0
) -> list[str]:
    """Copy the test's artifacts; warn of those that cannot be copied. Return the paths on the host.

    ``known`` are changes that were looked up for another purpose: they may tell that there is
    nothing to copy. ``since`` is the start of the test in nanoseconds since the epoch.
    """
    wanted = _patterns(item)
    if not wanted:
        return []
    patterns = [_resolved(item, pattern) for pattern in wanted]
    if known is not None and _is_certain(known) and not _has_match(known, patterns):
        return []
    limit = item.stash[SETTINGS].artifacts_limit
    try:
        copied = copy_changed(container.handle, patterns, limit, _NewNames(item), since)
    except (SandboxError, OSError) as error:
        session_state.warn(item, f"the artifacts of the test cannot be read: {error}")
        return []
    if copied.left_out or not copied.complete:
        session_state.warn(item, _problem(copied, limit))
    return copied.files


def _has_match(known: Changes, patterns: list[Pattern]) -> bool:
    roots = tuple(one.root for one in patterns)
    candidates = [one.path for one in known if one.path.startswith(roots)]
    if not candidates:  # without compiling anything: most tests end here
        return False
    selection = Patterns(patterns)
    return any(selection.match(path) is not None for path in candidates)


def _is_certain(known: Changes) -> bool:
    # hints.py leaves out directories that an unprivileged user may not read.
    return known.complete and os.geteuid() == 0


def _resolved(item: pytest.Item, pattern: str) -> Pattern:
    """Return a pattern with an absolute root, in which no name is a symbolic link of the host."""
    if pattern.startswith(TMP_PATH):
        name, rest = compat.tmp_path_name(item), pattern.removeprefix(TMP_PATH)
        made = Pattern.below(_base_temporary(item), f"*{rest}")
        return Pattern(made.root, (re.compile(rf"{re.escape(name)}\d+\Z"), *made.parts[1:]))
    resolved = item.config.stash.setdefault(_RESOLVED, {})
    if pattern not in resolved:
        path = os.path.normpath(os.path.join(item.config.rootpath, pattern))
        parts = path.strip("/").split("/")
        fixed = fixed_parts(path)
        root = os.path.realpath("/" + "/".join(parts[:fixed]))
        resolved[pattern] = Pattern.below(root, "/".join(parts[fixed:]))
    return resolved[pattern]


def _base_temporary(item: pytest.Item) -> str:
    return os.path.realpath(compat.base_temporary(item.config))


class _NewNames:
    """The names on the host of directories ``tmp_path``.

    Tests of one name in different containers have a directory of one name, and none may overwrite
    the other's: a copy gets the next number that is free. A test that holds a container has its
    directory on the host.
    """

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._found: dict[str, str] = {}

    def __call__(self, root: str, name: str) -> str:
        prefix = compat.tmp_path_name(self._item)
        number = name.removeprefix(prefix)
        is_inside = self._item.stash.get(INSIDE, False)
        if not is_inside or not number.isdecimal() or root != _base_temporary(self._item):
            return name
        if name not in self._found:
            names = (f"{prefix}{one}" for one in count(int(number)))
            taken = self._found.values()
            self._found[name] = next(
                one
                for one in names
                if one not in taken and not os.path.lexists(os.path.join(root, one))
            )
        return self._found[name]


def _problem(copied: Copied, limit: int) -> str:
    parts = [
        f"{printable(path)} ({reason})" for path, reason in [*copied.left_out.items()][:_MAX_SHOWN]
    ]
    more = len(copied.left_out) - len(parts)
    listed = ", ".join(parts) + (f" and {more} more" if more > 0 else "")
    if not copied.complete:
        searched = "the search took too long, or found too many"
        listed = f"{listed}; {searched}" if listed else searched
    return (
        f"not all artifacts of the test were copied: {listed}. A test may leave {mib(limit)} "
        "(artifacts_limit=) of regular files."
    )


def section(copied: list[str]) -> list[tuple[str, str]]:
    """Return the section of a failed report that lists the copies."""
    if not copied:
        return []
    lines = [printable(path) for path in copied[:_MAX_LISTED]]
    if len(copied) > _MAX_LISTED:
        lines.append(f"... and {len(copied) - _MAX_LISTED} more")
    return [("artifacts", "\n".join(lines))]
