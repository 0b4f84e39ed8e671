"""The setting ``artifacts``: files that a test leaves for people or for another program are copied
to the host when the test has ended, whatever its result.

protocol.py calls :func:`copy_artifacts`. An adapter of a plugin that writes files adds their
pattern with :func:`add_pattern`.
"""

from __future__ import annotations

import os
import re
from itertools import count
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.container.changed_files import Copied, copy_changed
from pytest_sandbox.container.path_patterns import Pattern, fixed_parts
from pytest_sandbox.errors import SandboxError
from pytest_sandbox.plugin import compat, session_state
from pytest_sandbox.plugin.stash import SETTINGS
from pytest_sandbox.printable import printable
from pytest_sandbox.settings.schema import TMP_PATH
from pytest_sandbox.units import mib

if TYPE_CHECKING:
    from pytest_sandbox.container.container import Container

__all__ = ["add_pattern", "copy_artifacts", "prepare", "section"]

_ADDED = pytest.StashKey[list[str]]()
_MAX_SHOWN = 3
_MAX_LISTED = 20


def add_pattern(config: pytest.Config, pattern: str) -> None:
    """Add a pattern for all tests of the session, in the form of the setting."""
    config.stash.setdefault(_ADDED, []).append(pattern)


def _patterns(item: pytest.Item) -> tuple[str, ...]:
    return (*item.stash[SETTINGS].artifacts, *item.config.stash.get(_ADDED, ()))


def prepare(item: pytest.Item) -> None:
    """Create the parent of ``tmp_path`` before the fork if it is needed: a test process that has to
    create it would choose another one.
    """
    if any(one.startswith(TMP_PATH) for one in _patterns(item)):
        compat.base_temporary(item.config)


def copy_artifacts(item: pytest.Item, container: Container) -> Copied:
    """Copy the test's artifacts; warn of those that cannot be copied."""
    wanted = _patterns(item)
    if not wanted:
        return Copied()
    patterns = [_resolved(item, pattern) for pattern in wanted]
    limit = item.stash[SETTINGS].artifacts_limit
    try:
        copied = copy_changed(container.handle, patterns, limit, _NewNames(item))
    except (SandboxError, OSError) as error:
        session_state.warn(item, f"the artifacts of the test cannot be read: {error}")
        return Copied()
    if copied.left_out or not copied.complete:
        session_state.warn(item, _problem(copied, limit))
    return copied


def _resolved(item: pytest.Item, pattern: str) -> Pattern:
    """Return a pattern with an absolute root, in which no name is a symbolic link of the host."""
    if pattern.startswith(TMP_PATH):
        name, rest = compat.tmp_path_name(item), pattern.removeprefix(TMP_PATH)
        made = Pattern.below(_base_temporary(item), f"*{rest}")
        return Pattern(made.root, (re.compile(rf"{re.escape(name)}\d+\Z"), *made.parts[1:]))
    path = os.path.normpath(os.path.join(item.config.rootpath, pattern))
    parts = path.strip("/").split("/")
    fixed = fixed_parts(path)
    root = os.path.realpath("/" + "/".join(parts[:fixed]))
    return Pattern.below(root, "/".join(parts[fixed:]))


def _base_temporary(item: pytest.Item) -> str:
    return os.path.realpath(compat.base_temporary(item.config))


class _NewNames:
    """The names on the host of directories ``tmp_path``.

    Tests of one name in different containers have a directory of one name, and none may overwrite
    the other's: a copy gets the next number that is free.
    """

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._found: dict[str, str] = {}

    def __call__(self, root: str, name: str) -> str:
        prefix = compat.tmp_path_name(self._item)
        number = name.removeprefix(prefix)
        if not number.isdecimal() or root != _base_temporary(self._item):
            return name
        if name not in self._found:
            names = (f"{prefix}{one}" for one in count(int(number)))
            self._found[name] = next(
                one for one in names if not os.path.lexists(os.path.join(root, one))
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


def section(copied: Copied) -> list[tuple[str, str]]:
    """Return the section of a failed report that lists the copies."""
    if not copied.files:
        return []
    lines = [printable(path) for path in copied.files[:_MAX_LISTED]]
    if len(copied.files) > _MAX_LISTED:
        lines.append(f"... and {len(copied.files) - _MAX_LISTED} more")
    return [("artifacts", "\n".join(lines))]
