"""The command line, ``pytest-sandbox VERB``: docker's verbs, flags and exit statuses.

Each module of this package defines the verbs of one subject, as
:class:`~pytest_sandbox.cli.verb.Verb` values in its ``VERBS``.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    The status is the command's own, or 125 for an error of pytest-sandbox, which is one line on
    stderr. With ``PYTEST_SANDBOX_DEBUG`` in the environment it is a traceback.
    """
    from pytest_sandbox.cli import exit_status, parser

    exit_status.open_standard_streams()
    args = list(sys.argv[1:] if argv is None else argv)
    debug = bool(os.environ.get("PYTEST_SANDBOX_DEBUG"))
    return exit_status.guarded(lambda: parser.dispatch(args), debugging=debug)
