"""The one place where errors become a line on stderr and an exit status, as docker's."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CANNOT_EXECUTE", "NOT_FOUND", "OUR_ERROR", "complain", "guarded", "status_of"]

OUR_ERROR = 125
CANNOT_EXECUTE = 126
NOT_FOUND = 127
_SIGNALED = 128
_LAYOUT = "\n\t"  # what our own messages of several lines are laid out by


def complain(text: object) -> None:
    """Say something on stderr that is not the command's."""
    print(f"pytest-sandbox: {printable(text, keep=_LAYOUT)}", file=sys.stderr)


def status_of(returncode: int) -> int:
    """Turn :mod:`subprocess`'s return code into a shell's status: 137 for a SIGKILL."""
    return _SIGNALED - returncode if returncode < 0 else returncode


def guarded(do: Callable[[], int], *, debugging: bool = False) -> int:
    """Do it, and return its status; an error becomes one line and 125, or its traceback where ``debugging``."""
    try:
        status = do()
        if sys.stdout is not None:  # the caller has closed it (``>&-``)
            sys.stdout.flush()
    except SystemExit as end:  # argparse's help, version, and wrong use
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        return _SIGNALED + signal.SIGINT
    except BrokenPipeError:  # who read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SIGNALED + signal.SIGPIPE
    except (SandboxError, OSError) as error:
        if debugging:
            raise
        complain(error)
        return OUR_ERROR
    return status
