"""The command line, ``pytest-sandbox VERB``: docker's verbs, flags and exit statuses.

Each file of this directory holds the verbs of one subject, as
:class:`~pytest_sandbox.cli.verb.Verb` values in its ``VERBS``; :data:`MODULES` says which file has
which verb, so that one verb loads what it needs and no more.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.cli.verb import Verb

__all__ = ["MODULES", "load", "main"]

#: Verb -> the file of this directory that has it, in the order of the help.
MODULES: dict[str, str] = {
    "doctor": "doctor",
    "run": "run",
    "ps": "containers",
    "exec": "containers",
    "shell": "containers",
    "rm": "containers",
    "stats": "containers",
    "diff": "containers",
    "pull": "images",
    "load": "images",
    "images": "images",
    "inspect": "images",
    "history": "images",
    "rmi": "images",
    "prune": "images",
}


def load(name: str) -> Verb:
    """Load one verb. Raises :class:`KeyError` for a name that is none."""
    module = importlib.import_module(f"{__package__}.{MODULES[name]}")
    verbs: tuple[Verb, ...] = module.VERBS
    return next(one for one in verbs if one.name == name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status: the command's own, or 125 for an error of
    ours, which is one line on stderr.
    """
    from pytest_sandbox.cli import exit_status, parser

    exit_status.open_standard_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    debugging = bool(os.environ.get("PYTEST_SANDBOX_DEBUG"))
    return exit_status.guarded(lambda: parser.dispatch(words), debugging=debugging)
