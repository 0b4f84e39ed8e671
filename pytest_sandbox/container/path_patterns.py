"""Patterns of paths, such as ``reports/**/*.png``.

``*``, ``?`` and ``[...]`` match within one name, as in :mod:`fnmatch`, also a leading dot; ``**``
is any number of directories. A pattern that matches a directory matches everything below it.

The names come from tests, and patterns from users. Matching takes time proportional to the number
of names, whatever both contain: all positions in the pattern are followed at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import translate
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Pattern", "Patterns", "fixed_parts"]

_MAGIC = re.compile(r"[*?\[]")


def fixed_parts(pattern: str) -> int:
    """Return how many of the names of a pattern stand for themselves, before the first that does
    not; the last name never counts.
    """
    parts = _parts(pattern)
    magic = (at for at, part in enumerate(parts) if _MAGIC.search(part))
    return min(next(magic, len(parts)), len(parts) - 1)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in {"", "."}]


@dataclass(frozen=True, slots=True)
class Pattern:
    """An absolute pattern: ``root`` is a directory, whose name stands for itself, and ``parts`` are
    the expressions of the names below it (None: ``**``).
    """

    root: str
    parts: tuple[re.Pattern[str] | None, ...]

    @classmethod
    def below(cls, root: str, rest: str) -> Self:
        """Return the pattern ``rest`` below a directory."""
        return cls(root, tuple(map(_expression, _parts(rest))))


def _expression(part: str) -> re.Pattern[str] | None:
    return None if part == "**" else re.compile(translate(part))


#: The names of a pattern from the root directory on.
Chain = tuple[str | re.Pattern[str] | None, ...]


class Patterns:
    """What several patterns select, as seen from a directory (default: the root directory).

    It is a :class:`~pytest_sandbox.linux.overlay_diff.Selection`. Each of ``states`` is a pattern's
    number and a position in it. At its end, everything below is selected.
    """

    def __init__(self, patterns: Iterable[Pattern]) -> None:
        self.chains: tuple[Chain, ...] = tuple((*_parts(one.root), *one.parts) for one in patterns)
        self.states = self._closed({(number, 0) for number in range(len(self.chains))})

    def _closed(self, states: set[tuple[int, int]]) -> frozenset[tuple[int, int]]:
        """Add the positions after a ``**``, which may stand for no directory."""
        pending, found = list(states), set(states)
        while pending:
            number, at = pending.pop()
            chain = self.chains[number]
            # "a/**" does not select the directory "a" itself.
            if at < len(chain) - 1 and chain[at] is None and (number, at + 1) not in found:
                found.add((number, at + 1))
                pending.append((number, at + 1))
        return frozenset(found)

    def below(self, name: str) -> Patterns | None:
        """Return what is selected below an entry; None if nothing is."""
        states = self._closed(set(self._steps(name)))
        if not states:
            return None
        made = Patterns(())
        made.chains, made.states = self.chains, states
        return made

    def _steps(self, name: str) -> Iterator[tuple[int, int]]:
        for number, at in self.states:
            chain = self.chains[number]
            if at == len(chain):
                yield number, at
                continue
            part = chain[at]
            if part is None:
                yield number, at
                if at == len(chain) - 1:
                    yield number, at + 1
            elif part == name if isinstance(part, str) else part.match(name):
                yield number, at + 1

    def match(self, path: str) -> int | None:
        """Return the number of the first pattern that selects an absolute path; None if none
        does.
        """
        found: Patterns | None = self
        for name in _parts(path):
            found = found.below(name) if found is not None else None
        if found is None:
            return None
        ends = [number for number, at in found.states if at == len(self.chains[number])]
        return min(ends, default=None)
