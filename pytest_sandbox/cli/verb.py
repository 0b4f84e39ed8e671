"""What a verb is: a name, its arguments, and what it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

__all__ = ["Verb"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One verb: ``arguments`` adds its arguments to a parser, ``run`` does it and returns the exit
    status.

    ``usage`` is what follows the name in the first line of the help, ``summary`` its second,
    ``details`` what stands below the arguments.
    """

    name: str
    usage: str
    summary: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    details: str = ""
