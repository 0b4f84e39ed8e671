"""A verb of the command line: its name, arguments and function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

__all__ = ["Verb"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One verb: ``arguments`` adds its arguments to a parser, ``run`` returns the exit status.

    In the help, ``usage`` follows the name in the first line, ``summary`` is the second line, and
    ``details`` is below the arguments.
    """

    name: str
    usage: str
    summary: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    details: str = ""
