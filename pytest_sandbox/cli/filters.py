"""``--filter KEY=VALUE``, as docker reads it: of several values of one key, one must hold; of
several keys, each.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Condition", "add_filter", "condition", "has_label", "matching"]

#: A key and its value.
Condition = tuple[str, str]
T = TypeVar("T")


def add_filter(
    parser: argparse.ArgumentParser, read: Callable[[str], Condition], text: str
) -> None:
    """Add ``--filter``, whose value ``read`` reads; ``text`` is its help."""
    parser.add_argument(
        "-f",
        "--filter",
        action="append",
        default=[],
        type=read,
        metavar="KEY=VALUE",
        help=text,
    )


def condition(
    text: str, keys: Sequence[str], words: Mapping[str, Sequence[str]] | None = None
) -> Condition:
    """Return the key and the value of a ``--filter``; ``words`` are the values of some keys.

    Raises :class:`argparse.ArgumentTypeError`, which names what is accepted.
    """
    key, equals, value = text.partition("=")
    accepted = (words or {}).get(key, ())
    if not equals or key not in keys or (accepted and value not in accepted):
        more = "".join(
            f", and for {name} a VALUE among {', '.join(values)}"
            for name, values in (words or {}).items()
        )
        raise argparse.ArgumentTypeError(
            f"{text!r} is not valid; accepted: KEY=VALUE with a KEY among {', '.join(keys)}{more}"
        )
    return key, value


def matching(
    one: T, only: Sequence[Condition], tests: Mapping[str, Callable[[T, str], bool]]
) -> bool:
    """Return whether the conditions hold for ``one``; ``tests`` has the test of each key."""
    return all(
        any(tests[key](one, value) for other, value in only if other == key)
        for key in {key for key, _value in only}
    )


def has_label(labels: Mapping[str, object], value: str) -> bool:
    """Return whether a label exists; for ``KEY=VALUE``, whether it has the value."""
    name, equals, text = value.partition("=")
    return name in labels and (not equals or labels[name] == text)
